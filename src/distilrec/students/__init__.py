"""Students by name. One line here and one file make a new student known to the command line, the tests and the docs."""

from distilrec.students.base import Student
from distilrec.students.gru4rec import GRU4Rec
from distilrec.students.sasrec import SASRec

STUDENTS: dict[str, type[Student]] = {kind.name: kind for kind in (SASRec, GRU4Rec)}
