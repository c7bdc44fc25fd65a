"""Methods by name."""

from distilrec.methods.base import Method
from distilrec.methods.dllm2rec import DLLM2Rec
from distilrec.methods.plain import Plain

METHODS: dict[str, type[Method]] = {kind.name: kind for kind in (Plain, DLLM2Rec)}
