"""Students by name. One line here and one file make a new student known to the command line, the tests and the docs."""

from distilrec.students.attmix import AttMix
from distilrec.students.base import Student
from distilrec.students.bert4rec import BERT4Rec
from distilrec.students.caser import Caser
from distilrec.students.dros import DROS
from distilrec.students.esasrec import ESASRec
from distilrec.students.fpmc import FPMC
from distilrec.students.gru4rec import GRU4Rec
from distilrec.students.sasrec import SASRec
from distilrec.students.stamp import STAMP

STUDENTS: dict[str, type[Student]] = {
    kind.name: kind for kind in (SASRec, ESASRec, DROS, BERT4Rec, GRU4Rec, Caser, FPMC, STAMP, AttMix)
}
