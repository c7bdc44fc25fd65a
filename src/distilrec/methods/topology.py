"""Topologies of a set of vectors: how like each other they are, by the cosine. Tensors in, a scalar out."""

import torch
from torch import Tensor
from torch.nn import functional


def full_topology(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean over all pairs of (cos of the teacher's - cos of the student's)^2.

    With S and T the vectors brought to length 1, ||TT' - SS'||^2 = ||TT'||^2 - 2 ||T'S||^2 + ||SS'||^2 (Frobenius), and
    ||XX'|| = ||X'X||: no matrix of pairs is ever formed, unless it is the smaller one.

    Args:
        student: [U, d].
        teacher: [U, D].
    """
    with torch.autocast(student.device.type, enabled=False):  # a difference of large sums
        s, t = unit(student), unit(teacher).to(student.dtype)
        apart = _gram(t) - 2 * (t.T @ s).square().sum() + _gram(s)
    return apart / len(s) ** 2


def hierarchical_topology(
    student: Tensor, teacher: Tensor, groups: Tensor, n_groups: int, *, between_prototypes: bool = False
) -> Tensor:
    """Return the mean over pairs inside a group, plus that over pairs with the groups' prototypes, of (difference of cosines)^2.

    Args:
        student: [U, d].
        teacher: [U, D].
        groups: [U] int64, below `n_groups`; a group may be empty.
        n_groups: number of groups.
        between_prototypes: compare prototypes with prototypes, not entities with prototypes.
    """
    with torch.autocast(student.device.type, enabled=False):
        teacher = teacher.to(student.dtype)
        member = functional.one_hot(groups, n_groups).to(student.dtype)  # [U, G]
        sizes = member.sum(dim=0)
        # The mean of a group points where its sum does, and only that counts; an empty group's is 0, and like nothing.
        centre_s, centre_t = unit(member.T @ student), unit(member.T @ teacher)
        s, t = unit(student), unit(teacher)
        inside = (s @ s.T - t @ t.T).square() * (groups[:, None] == groups)
        left_s, left_t = (centre_s, centre_t) if between_prototypes else (s, t)
        across = (left_s @ centre_s.T - left_t @ centre_t.T).square()
        there = sizes.count_nonzero()
        rows = there if between_prototypes else len(s)
        return inside.sum() / sizes.square().sum() + across.sum() / (rows * there)


def unit(vectors: Tensor) -> Tensor:
    """Return vectors [U, d] at length 1; a vector of length 0 stays what it is."""
    return functional.normalize(vectors, dim=1)


def _gram(vectors: Tensor) -> Tensor:
    """Return the squared Frobenius norm of XX' for vectors X [U, d]."""
    small = vectors.T @ vectors if vectors.shape[1] < len(vectors) else vectors @ vectors.T
    return small.square().sum()
