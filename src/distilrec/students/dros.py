"""DROS: SASRec trained against shifts of the item distribution.

Yang et al., "A Generic Learning Framework for Sequential Recommendation with Distribution Shifts", SIGIR 2023. The model is
`sasrec` unchanged; what differs is the objective, distributionally robust optimization, in `losses/dro.py`, which a
training of this student uses unless it names another loss.

Deviations: those of `sasrec`, and those of the loss.
"""

from typing import ClassVar

from distilrec.students.sasrec import SASRec


class DROS(SASRec):
    """SASRec whose default loss is distributionally robust."""

    name = "dros"
    default_loss: ClassVar[str] = "dro"
