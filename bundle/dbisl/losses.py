"""The loss of DBiSL: supervision, consistency and pseudo-supervision of two tasks, in both directions of the bridge.

Notation: ``P`` is the segmentation and ``R`` the signed distance map (SDM) that the network predicts;
``P_r = T_r2s(R)`` and ``R_s = T_s2r(P)`` are the same predictions after crossing the bridge; ``Y`` and ``R*`` are the
label and its exact SDM. With other weights the same loss trains a supervised V-Net, a dual-task network, or DTC (Luo et
al., AAAI 2021).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from monai.networks.utils import one_hot
from torch import nn
from torch.nn import functional

from dbisl.bridge import (
    DualTaskOutput,
    SDMToSegmentation,
    SegmentationToSDM,
    fuse_tasks,
    harden,
    normalised_entropy,
)
from dbisl.utils.distributed import sum_over_ranks

LABELED_TERMS = ("segmentation", "regression", "segmentation_across", "regression_across")
CONSISTENCY_TERMS = ("consistency_segmentation", "consistency_regression")
PSEUDO_TERMS = ("pseudo_segmentation", "pseudo_segmentation_across", "pseudo_regression")
TERMS = (*LABELED_TERMS, *CONSISTENCY_TERMS, *PSEUDO_TERMS)

SMOOTH = 1e-5
"""Added to both parts of the Dice ratio, as MONAI does: an absent class that is not predicted costs nothing."""


def dice_cross_entropy(
    log_probabilities: torch.Tensor,
    probabilities: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    voxels: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the soft Dice loss of the foreground classes over the whole batch, plus the cross-entropy.

    With several processes, the Dice is computed over all their batches together.

    Args:
        log_probabilities: ``B x K x *spatial``.
        probabilities: their exponential, which the caller has anyway.
        target: ``B x K x *spatial`` probabilities; one-hot for a label.
        weight: weight of each voxel in both parts, ``B x 1 x *spatial``; None: 1 everywhere.
        voxels: number by which the summed cross-entropy is divided, a scalar; None: the number of all voxels.

    Returns:
        A scalar.
    """
    # Sums over voxels are inner products: one pass each, where elementwise products would take several.
    log_p, p, t = (maps.flatten(2) for maps in (log_probabilities, probabilities, target))
    if weight is None:
        total = p.sum(dim=2) + t.sum(dim=2)
    else:
        w = weight.flatten(2)
        t = w * t
        total = (p @ w.mT).squeeze(2) + t.sum(dim=2)
    cross_entropy = -torch.linalg.vecdot(log_p, t).sum() / (p.shape[0] * p.shape[2] if voxels is None else voxels)
    overlap = torch.linalg.vecdot(p, t)
    overlap, total = sum_over_ranks(torch.stack([overlap, total]).sum(dim=1))
    dice = (2 * overlap + SMOOTH) / (total + SMOOTH)
    return 1 - dice[1:].mean() + cross_entropy


class _BridgedOutput:
    """A network's output on both sides of the bridge; each map is computed once, when a term first needs it."""

    def __init__(
        self, output: DualTaskOutput, sdm_to_segmentation: SDMToSegmentation, segmentation_to_sdm: SegmentationToSDM
    ) -> None:
        self.output = output
        self._sdm_to_segmentation = sdm_to_segmentation
        self._segmentation_to_sdm = segmentation_to_sdm

    @cached_property
    def log_p(self) -> torch.Tensor:
        return functional.log_softmax(self.output.logits, dim=1)

    @cached_property
    def p(self) -> torch.Tensor:
        return self.log_p.exp()

    @cached_property
    def r(self) -> torch.Tensor:
        if self.output.sdm is None:
            raise ValueError("this loss has terms of the distance regression, but the network predicts no SDM.")
        return self.output.sdm

    @cached_property
    def log_p_r(self) -> torch.Tensor:
        return functional.log_softmax(self._sdm_to_segmentation.logits(self.r), dim=1)

    @cached_property
    def p_r(self) -> torch.Tensor:
        return self.log_p_r.exp()

    @cached_property
    def r_s(self) -> torch.Tensor:
        return self._segmentation_to_sdm.from_log(self.log_p)


class DBiSLLoss(nn.Module):
    """Weighted sum of the terms below; a term with weight 0 is not computed.

    ==============================  =======================================================  ==================
    term                            what it compares                                         on
    ==============================  =======================================================  ==================
    ``segmentation``                DiceCE(P, Y)                                             labeled
    ``regression``                  L1(R, R*)                                                labeled
    ``segmentation_across``         DiceCE(P_r, Y)                                           labeled
    ``regression_across``           L1(R_s, R*)                                              labeled
    ``consistency_segmentation``    mean squared P - P_r                                     all
    ``consistency_regression``      mean squared R - R_s                                     all
    ``pseudo_segmentation``         DiceCE(P, pseudo-label), weighted by certainty           unlabeled
    ``pseudo_segmentation_across``  DiceCE(P_r, pseudo-label), weighted by certainty         unlabeled
    ``pseudo_regression``           L1(R, T_s2r(pseudo-label)), weighted by certainty        unlabeled
    ==============================  =======================================================  ==================

    The total is ``sum(labeled terms) + ramp * sum(unlabeled terms)``; :class:`dbisl.handlers.RampUp` sets ``ramp``.

    Args:
        weights: weight of each term by name; a term that is not named has weight 0.
        sdm_to_segmentation: ``T_r2s``.
        segmentation_to_sdm: ``T_s2r``, with the band and spacing of ``R*``.
        pseudo_label: ``"fused"``: both tasks learn from ``(P + P_r) / 2``; ``"cross"``: each learns from the other's.
        harden: whether a pseudo-label is the most probable class (True) or the probabilities themselves (False).
        gamma: how fast a voxel's weight ``exp(-gamma * U)`` falls with its uncertainty ``U``, the entropy of
            ``(P + P_r) / 2`` over ``log K``; 0: all voxels count alike.

    Attributes:
        ramp: factor of the consistency and pseudo-supervised terms, ``lambda(t)``.

    Raises:
        ValueError: when a term is unknown, a weight is negative, no labeled term has a weight, or ``pseudo_label`` is
            unknown.

    Example:
        >>> loss = DBiSLLoss(
        ...     weights={"segmentation": 1.0, "regression": 1.0},
        ...     sdm_to_segmentation=SDMToSegmentation(slope=10.0),
        ...     segmentation_to_sdm=SegmentationToSDM(band=5.0),
        ... )
        >>> label, sdm = torch.zeros(2, 1, 8, 8, 8), torch.tensor([1.0, -1.0]).view(1, 2, 1, 1, 1).expand(2, 2, 8, 8, 8)
        >>> total, terms = loss(DualTaskOutput(logits=20 * sdm, sdm=sdm), label, sdm)
        >>> {name: round(float(term), 4) for name, term in terms.items()}
        {'segmentation': 0.0, 'regression': 0.0}
    """

    def __init__(
        self,
        *,
        weights: Mapping[str, float],
        sdm_to_segmentation: SDMToSegmentation,
        segmentation_to_sdm: SegmentationToSDM,
        pseudo_label: str = "fused",
        harden: bool = False,
        gamma: float = 0.0,
    ) -> None:
        super().__init__()
        unknown = sorted(set(weights) - set(TERMS))
        if unknown:
            raise ValueError(f"unknown loss terms {unknown}; expected some of {list(TERMS)}.")
        negative = {name: weight for name, weight in weights.items() if weight < 0}
        if negative:
            raise ValueError(f"loss weights must not be negative, got {negative}.")
        if pseudo_label not in ("fused", "cross"):
            raise ValueError(f"pseudo_label must be 'fused' or 'cross', got {pseudo_label!r}.")
        if not any(weights.get(name, 0) > 0 for name in LABELED_TERMS):
            raise ValueError(
                f"at least one of the labeled terms {list(LABELED_TERMS)} needs a weight, got {dict(weights)}."
            )
        self.weights = {name: float(weights[name]) for name in TERMS if weights.get(name, 0) > 0}
        self.sdm_to_segmentation = sdm_to_segmentation
        self.segmentation_to_sdm = segmentation_to_sdm
        self.pseudo_label = pseudo_label
        self.harden = harden
        self.gamma = gamma
        self.ramp = 1.0

    @property
    def uses_unlabeled(self) -> bool:
        """Whether any term needs unlabeled scans; if not, the network need not see them."""
        return any(name not in LABELED_TERMS for name in self.weights)

    @property
    def uses_pseudo_labels(self) -> bool:
        """Whether a pseudo-supervised term has a weight; if not, no teacher is ever needed."""
        return any(name in self.weights for name in PSEUDO_TERMS)

    @property
    def needs_pseudo_labels(self) -> bool:
        """Whether a pseudo-supervised term counts at the present ramp; if not, no teacher is needed now."""
        return self.ramp > 0 and self.uses_pseudo_labels

    def forward(
        self,
        prediction: DualTaskOutput,
        label: torch.Tensor,
        sdm: torch.Tensor | None = None,
        teacher: DualTaskOutput | None = None,
        valid_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Compute the loss of a batch whose first ``B_l`` items are labeled and whose other items are not.

        Either kind may be absent; its terms are then not computed.

        Args:
            prediction: the network's output, ``B x K x *spatial`` each.
            label: ``Y``, class indices of the labeled items, ``B_l x 1 x *spatial``.
            sdm: ``R*`` of the labeled items, ``B_l x K x *spatial``; needed by the regression terms.
            teacher: a teacher's output for the unlabeled items, in their order, from which the pseudo-labels are made;
                None: the network's own output, detached.
            valid_mask: which voxels of ``Y`` were annotated, ``B_l x 1 x *spatial``; the labeled terms count only these
                (and only the voxels of ``R*`` that are not NaN). None: all voxels.

        Returns:
            The total, a scalar, and each computed term by name, before its weight (detached).

        Raises:
            ValueError: when a term needs the SDM of the network or of the label and there is none, or when no term
                counts for such a batch.
        """
        sizes = [len(label), len(prediction.logits) - len(label)]
        labeled, unlabeled = self._bridge(prediction, sizes)
        factors = self._factors(has_labeled=sizes[0] > 0, has_unlabeled=sizes[1] > 0)
        if not factors:
            raise ValueError(
                f"no term of the loss counts for {sizes[0]} labeled and {sizes[1]} unlabeled items at a ramp of "
                f"{self.ramp:g}: without labels, expected a warm_up of 0."
            )
        terms = self._labeled_terms(factors, labeled, label, sdm, valid_mask)
        terms |= self._consistency_terms(factors, [labeled, unlabeled])
        if any(name in factors for name in PSEUDO_TERMS):
            source = unlabeled if teacher is None else self._bridge(teacher, sizes[1:])[0]
            terms |= self._pseudo_terms(factors, unlabeled, source)
        total = torch.stack([factor * terms[name] for name, factor in factors.items()]).sum()
        return total, {name: term.detach() for name, term in terms.items()}

    def _factors(self, has_labeled: bool, has_unlabeled: bool) -> dict[str, float]:
        """Factor in the total of each term that counts for this batch."""
        factors = {
            name: weight if name in LABELED_TERMS else self.ramp * weight for name, weight in self.weights.items()
        }
        absent = (*(() if has_labeled else LABELED_TERMS), *(() if has_unlabeled else PSEUDO_TERMS))
        return {name: factor for name, factor in factors.items() if factor > 0 and name not in absent}

    def _bridge(self, output: DualTaskOutput, sizes: list[int]) -> list[_BridgedOutput]:
        """Bridged output of consecutive parts of the batch.

        The batch is split once: a slice in each term would cost a volume of zeros in each term's backward pass.
        """
        logits = _float32_contiguous(output.logits).split(sizes)
        sdms = [None] * len(sizes) if output.sdm is None else _float32_contiguous(output.sdm).split(sizes)
        parts = (DualTaskOutput(*part) for part in zip(logits, sdms, strict=True))
        return [_BridgedOutput(part, self.sdm_to_segmentation, self.segmentation_to_sdm) for part in parts]

    def _labeled_terms(
        self,
        names: Mapping[str, float],
        prediction: _BridgedOutput,
        label: torch.Tensor,
        sdm: torch.Tensor | None,
        valid_mask: torch.Tensor | None,
    ) -> dict[str, torch.Tensor]:
        terms = {}
        if "segmentation" in names or "segmentation_across" in names:
            y = one_hot(label, prediction.output.logits.shape[1])
            weight, voxels = None, None
            if valid_mask is not None:
                weight, voxels = valid_mask.float(), valid_mask.sum().clamp(min=1)
            if "segmentation" in names:
                terms["segmentation"] = dice_cross_entropy(prediction.log_p, prediction.p, y, weight, voxels)
            if "segmentation_across" in names:
                terms["segmentation_across"] = dice_cross_entropy(prediction.log_p_r, prediction.p_r, y, weight, voxels)
        if "regression" in names or "regression_across" in names:
            if sdm is None:
                raise ValueError("the terms 'regression' and 'regression_across' need the SDM of the labels.")
            target = sdm.float()
            defined = None if valid_mask is None else ~target.isnan()
            if "regression" in names:
                terms["regression"] = _mean_absolute_error(prediction.r, target, defined)
            if "regression_across" in names:
                terms["regression_across"] = _mean_absolute_error(prediction.r_s, target, defined)
        return terms

    def _consistency_terms(
        self, names: Mapping[str, float], parts: Sequence[_BridgedOutput]
    ) -> dict[str, torch.Tensor]:
        terms = {}
        if "consistency_segmentation" in names:
            terms["consistency_segmentation"] = _mean_squared_error([(part.p, part.p_r) for part in parts])
        if "consistency_regression" in names:
            terms["consistency_regression"] = _mean_squared_error([(part.r, part.r_s) for part in parts])
        return terms

    def _pseudo_terms(
        self, names: Mapping[str, float], prediction: _BridgedOutput, source: _BridgedOutput
    ) -> dict[str, torch.Tensor]:
        p = source.p.detach()
        p_r = p if source.output.sdm is None else source.p_r.detach()
        fused = fuse_tasks(p, p_r)
        weight = torch.exp(-self.gamma * normalised_entropy(fused)) if self.gamma > 0 else None
        for_segmentation, for_regression = (fused, fused) if self.pseudo_label == "fused" else (p_r, p)
        if self.harden:
            for_segmentation, for_regression = harden(for_segmentation), harden(for_regression)
        terms = {}
        if "pseudo_segmentation" in names:
            terms["pseudo_segmentation"] = dice_cross_entropy(prediction.log_p, prediction.p, for_segmentation, weight)
        if "pseudo_segmentation_across" in names:
            terms["pseudo_segmentation_across"] = dice_cross_entropy(
                prediction.log_p_r, prediction.p_r, for_regression, weight
            )
        if "pseudo_regression" in names:
            target = self.segmentation_to_sdm(for_regression)
            error = functional.l1_loss(prediction.r, target, reduction="none")
            terms["pseudo_regression"] = (error if weight is None else weight * error).mean()
        return terms


def _float32_contiguous(maps: torch.Tensor) -> torch.Tensor:
    return maps.to(torch.float32, memory_format=torch.contiguous_format)


def _mean_absolute_error(maps: torch.Tensor, target: torch.Tensor, defined: torch.Tensor | None) -> torch.Tensor:
    if defined is None:
        return functional.l1_loss(maps, target)
    error = functional.l1_loss(maps, torch.where(defined, target, 0), reduction="none")
    return (defined * error).sum() / defined.sum().clamp(min=1)


def _mean_squared_error(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    squares = [functional.mse_loss(one, other, reduction="sum") for one, other in pairs]
    return torch.stack(squares).sum() / sum(one.numel() for one, _ in pairs)
