"""A question becomes a table: methods, students, teachers and seeds, trained and tested alike, and how sure each figure is."""
