"""Teachers by name."""

from typing import Any

from distilrec.teachers.bigrec import BigRec
from distilrec.teachers.conventional import Conventional
from distilrec.teachers.e4srec import E4SRec
from distilrec.teachers.ranker import Ranker
from distilrec.teachers.recorded import RecordedTeacher
from distilrec.teachers.text import TextTeacher

TEACHERS: dict[str, Any] = {
    kind.name: kind for kind in (E4SRec, BigRec, Ranker, TextTeacher, Conventional, RecordedTeacher)
}
