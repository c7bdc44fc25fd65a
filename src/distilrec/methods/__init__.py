"""Methods by name."""

from distilrec.methods.alkdrec import ALKDRec
from distilrec.methods.base import Method
from distilrec.methods.cd import CD
from distilrec.methods.dcd import DCD
from distilrec.methods.de import DE
from distilrec.methods.dllm2rec import DLLM2Rec
from distilrec.methods.ftd import FTD
from distilrec.methods.hint import Hint
from distilrec.methods.htd import HTD
from distilrec.methods.llmd4rec import LLMD4Rec
from distilrec.methods.plain import Plain
from distilrec.methods.rd import RD
from distilrec.methods.rrd import RRD
from distilrec.methods.soft_labels import SoftLabels
from distilrec.methods.unkd import UnKD

METHODS: dict[str, type[Method]] = {
    kind.name: kind
    for kind in (Plain, DLLM2Rec, LLMD4Rec, ALKDRec, SoftLabels, RD, CD, RRD, DCD, UnKD, Hint, FTD, HTD, DE)
}
