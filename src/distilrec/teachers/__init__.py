"""Teachers by name: LLM recommenders that rank the catalogue."""

from distilrec.teachers.e4srec import E4SRec

TEACHERS: dict[str, type[E4SRec]] = {kind.name: kind for kind in (E4SRec,)}
