"""EK-FAC influence functions: weight gradients whitened by an eigenvalue-corrected Kronecker-factored curvature."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Sequence
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, cast
from warnings import catch_warnings, filterwarnings

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from extractors.gradients.parameter_gradient import ParameterGradient
from extractors.gradients.weights import Factors, choose_weights
from rept.distributed.collectives import process
from rept.errors import UsageError
from rept.model.hooks import Response
from rept.model.lm_head import logits_at
from rept.types import IGNORE, Batch, PreTrainedModel, Signature

_NAME = "factors"


class Curvature(NamedTuple):
    """EK-FAC of one linear layer: ``H = (Q_S x Q_A) diag(lambda) (Q_S x Q_A)^T``."""

    left: Tensor  # Q_S (M M), eigenvectors of the output gradients' second moment
    right: Tensor  # Q_A (K K), those of the inputs'; K counts a bias as one more input
    scale: Tensor  # 1 / sqrt(lambda + damping) (M K)


class EKFACGradient(ParameterGradient):
    """EK-FAC influence functions (Grosse et al. 2023, arXiv 2308.03296), together with `scorers.inner_product`.

    The score is ``g_q^T (H + lambda I)^-1 g_z``, H being the Gauss-Newton Hessian in EK-FAC's form (George et al. 2018,
    arXiv 1806.03884), one block a linear layer. It is symmetric, so both sides get the same signature,
    ``(H + lambda I)^(-1/2) g`` in H's eigenbasis: ``(Q_S^T G Q_A) / sqrt(lambda + damping)``, projected. Inner products
    of signatures are the scores (exactly with ``dimension=null``, on average with a projection).

    The factors are fitted by kronfluence (extra ``ekfac``) on drawn training rows before extraction, with the loss that
    is attributed, each sample's mean cross-entropy. Only linear layers take part, including their biases; embeddings,
    norms and the output layer do not, as in the paper.

    Args:
        rows: training rows that the factors are fitted on; null: all.
        damping: relative to a layer's mean lambda, above 0; 0.1 is kronfluence's.
        empirical: the Fisher matrix of the data's own responses, instead of drawn ones (the Gauss-Newton form).
        weights: a regular expression that is searched in the names of those layers' weights; null: all of them.
        dimension: as in `extractors.gradients.parameter_gradient`.
        seed: of the projection, and of the drawn responses.

    Raises:
        UsageError: a setting is out of range; when fitted, kronfluence is missing, no linear layer is chosen, or
            several processes run.
    """

    def __init__(
        self,
        rows: int | None = 1024,
        damping: float = 0.1,
        empirical: bool = False,
        weights: str | None = None,
        dimension: int | None = 8192,
        seed: int = 0,
    ) -> None:
        super().__init__(weights or "all", dimension, seed=seed)
        if damping <= 0 or (rows is not None and rows < 1):
            raise UsageError(
                f"Expected extractor.damping above 0 and extractor.rows >= 1, or null, but got {damping} and {rows}."
            )
        self.fit_rows = rows
        self.damping, self.empirical, self.seed = damping, empirical, seed
        self._curvature: dict[str, Curvature] = {}

    def fit(self, model: PreTrainedModel, batches: Iterable[Batch]) -> None:
        """Fits the factors on training batches."""
        if process()[1] > 1:
            raise UsageError("EK-FAC's factors are fitted by one process: set trainer.devices=1.")
        modules = _linear_layers(model, self.weights)
        found = _fit(model, modules, list(batches), self.empirical, self.seed)
        self._curvature = {
            f"{module}.weight": _curvature({name: part[module] for name, part in found.items()}, self.damping)
            for module in modules
        }

    def __call__(self, model: PreTrainedModel, batch: Batch, layers: Sequence[int]) -> Signature:
        if not self._curvature:
            raise UsageError("EK-FAC's factors are not fitted: call fit() with training batches first.")
        return super().__call__(model, batch, layers)

    def choose(self, model: PreTrainedModel) -> list[str]:
        return list(self._curvature)

    def project(self, name: str, factors: Factors, batch: Batch) -> Tensor:
        curvature = Curvature(*(part.to(factors.left) for part in self._curvature[name]))
        right = factors.right
        if len(curvature.right) > right.shape[1]:  # the bias
            right = torch.cat([right, right.new_ones(len(right), 1)], dim=1)
        rotated = Factors(factors.left @ curvature.left, right @ curvature.right, factors.count)
        whitened = rotated.whole() * curvature.scale  # (B M K)
        return whitened.flatten(1) if self.projection is None else self.projection.of_matrices(name, whitened)


def _linear_layers(model: PreTrainedModel, weights: str) -> list[str]:
    """The names of the linear layers whose weights are chosen, without the output layer."""
    chosen = set(choose_weights(model, weights))
    output = model.get_output_embeddings()
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not output and f"{name}.weight" in chosen
    ]
    if not found:
        raise UsageError(f"extractor.weights={weights} matches no linear layer's weight, which EK-FAC needs.")
    return found


def _curvature(found: dict[str, Tensor], damping: float) -> Curvature:
    eigenvalues = found["lambda_matrix"].double() / found["num_lambda_processed"]
    floor = damping * eigenvalues.mean()
    scale = torch.where(eigenvalues + floor > 0, (eigenvalues + floor).rsqrt(), 0)
    return Curvature(found["gradient_eigenvectors"], found["activation_eigenvectors"], scale.float())


def _fit(
    model: PreTrainedModel, modules: list[str], batches: list[Batch], empirical: bool, seed: int
) -> dict[str, dict[str, Tensor]]:
    """kronfluence's eigenvectors and corrected eigenvalues, by factor and module."""
    try:
        from kronfluence.analyzer import Analyzer, prepare_model
        from kronfluence.arguments import FactorArguments
        from kronfluence.utils.dataset import DataLoaderKwargs
    except ModuleNotFoundError:
        raise UsageError("EK-FAC needs kronfluence: pip install kronfluence (extra `ekfac`).") from None
    task = _task(modules)
    wrapped = prepare_model(copy.deepcopy(model).float(), task)  # a copy: its modules are replaced
    samples = [_sample(batch, i) for batch in batches for i in range(len(batch))]
    largest = max(len(batch) for batch in batches)
    with TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]), torch.enable_grad(), catch_warnings():
        filterwarnings("ignore", ".*GradScaler", FutureWarning)  # kronfluence uses a deprecated name
        torch.manual_seed(seed)  # of the drawn responses
        analyzer = Analyzer(
            "ekfac", wrapped, task, cpu=not torch.cuda.is_available(), log_level=logging.ERROR, disable_tqdm=True,
            output_dir=folder,
        )  # fmt: skip
        analyzer.fit_all_factors(
            _NAME,
            samples,
            per_device_batch_size=largest,
            dataloader_kwargs=DataLoaderKwargs(collate_fn=_collate),
            factor_args=FactorArguments(strategy="ekfac", use_empirical_fisher=empirical),
        )
        return {**analyzer.load_eigendecomposition(_NAME), **analyzer.load_lambda_matrices(_NAME)}


def _task(modules: list[str]) -> Any:
    """The task for kronfluence: the sum over samples of their mean losses."""
    from kronfluence.task import Task

    class MeanLosses(Task):  # type: ignore[misc]  # the library has no types
        def compute_train_loss(self, batch: dict[str, Tensor], model: nn.Module, sample: bool = False) -> Tensor:
            response = Response.of(batch["labels"])
            # A single forward pass, even if responses are drawn: kronfluence counts the inputs of each pass.
            logits = logits_at(cast("PreTrainedModel", model), batch["input_ids"], response.position).float()
            drawn = torch.multinomial(logits.detach().softmax(-1), 1).squeeze(1) if sample else response.target
            return response.mean(cross_entropy(logits, drawn.to(logits.device), reduction="none")).sum()

        def compute_measurement(self, batch: dict[str, Tensor], model: nn.Module) -> Tensor:
            return self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self) -> list[str]:
            return modules

        def get_attention_mask(self, batch: dict[str, Tensor]) -> Tensor:
            return batch["real"]

    return MeanLosses()


def _sample(batch: Batch, i: int) -> dict[str, Tensor]:
    """One sample of a batch without its padding."""
    length = int(batch.length[i])
    return {"input_ids": batch.input_ids[i, :length], "labels": batch.labels[i, :length]}


def _collate(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Samples as one right-padded batch, and which of its positions are real."""
    ids = [sample["input_ids"] for sample in samples]
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "labels": pad_sequence([sample["labels"] for sample in samples], batch_first=True, padding_value=IGNORE),
        "real": pad_sequence([torch.ones_like(one) for one in ids], batch_first=True),
    }
