"""A linear head on a sentence-transformers encoder, read from and saved to that library's directory format.

Legend of shapes: B sentences, T tokens, D features, C outputs.
"""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

POOLING_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "lasttoken",
}


class SentenceOutput(NamedTuple):
    """What a sentence classifier returns: `logits` (B, C)."""

    logits: Float[Tensor, "B C"]


class SentenceClassifier(nn.Module):
    """Encoder, the encoder's own pooling, and a linear head.

    A normalisation to unit length, which many of these models end with, is left out: it serves the cosine similarity,
    and a head on unit vectors would need weights some twenty times as large as those of any other layer.

    Args:
        encoder: a transformers encoder whose output has `last_hidden_state` (B, T, D).
        pooling: "mean", "cls", "max" or "lasttoken", as the encoder was trained with.
        num_outputs: C.
        source: directory the encoder came from, whose other files a save copies.

    Attributes:
        head: the linear layer, D to C, on the pooled features.
        has_trained_head: whether `from_directory` found a head with C outputs there; else `head` is fresh.
    """

    def __init__(self, encoder: nn.Module, *, pooling: str, num_outputs: int, source: Path) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling
        self.source = source
        self.has_trained_head = False
        config: Any = encoder.config
        self.head = nn.Linear(config.hidden_size, num_outputs, dtype=next(encoder.parameters()).dtype)

    @classmethod
    def from_directory(cls, path: Path, *, num_outputs: int, generator: torch.Generator, dtype: str = "auto") -> Self:
        """Reads a sentence-transformers directory; the head is fresh, drawn from `generator` at scale 0.02.

        Raises:
            ValueError: the directory holds modules that are not supported, or a pooling that is not one of ours.
        """
        from transformers import AutoModel

        modules = json.loads((path / "modules.json").read_text())
        kinds = [module["type"].rsplit(".", 1)[-1] for module in modules]
        if [kind for kind in kinds if kind not in ("Normalize", "Dense")] != ["Transformer", "Pooling"]:
            raise ValueError(
                f"{path} is a sentence-transformers model made of {', '.join(kinds)}; only Transformer, Pooling, Normalize "
                "and a Dense head of this library are supported. Pass a directory without further modules."
            )
        encoder = AutoModel.from_pretrained(
            path / modules[0]["path"], dtype=dtype, use_safetensors=True, **_without_pooler(path)
        )
        pooling = _read_pooling(path / modules[1]["path"] / "config.json")
        model = cls(encoder, pooling=pooling, num_outputs=num_outputs, source=path)
        with torch.no_grad():
            model.head.weight.normal_(0, 0.02, generator=generator)
            model.head.bias.zero_()
        if "Dense" in kinds:
            model.has_trained_head = model._load_head(path / modules[kinds.index("Dense")]["path"])
        return model

    def _load_head(self, path: Path) -> bool:
        """Takes the weights of a Dense module of the same shape; False if its shape is another."""
        weights = load_file(path / "model.safetensors")
        if weights["linear.weight"].shape != self.head.weight.shape:
            return False
        self.head.load_state_dict({name.removeprefix("linear."): tensor for name, tensor in weights.items()})
        return True

    def file_names(self) -> dict[str, str]:
        """Names of the state dict by names in the files it was loaded from: folder of the module, slash and name there."""
        found = {}
        for module in json.loads((self.source / "modules.json").read_text()):
            folder = f"{module['path']}/" if module["path"] else ""
            if module["type"].endswith(".Transformer"):
                found |= {folder + name: f"encoder.{name}" for name in self.encoder.state_dict()}
            elif module["type"].endswith(".Dense"):
                found |= {f"{folder}linear.{name}": f"head.{name}" for name in self.head.state_dict()}
        return found

    def forward(
        self,
        input_ids: Int[Tensor, "B T"],
        attention_mask: Int[Tensor, "B T"],
        token_type_ids: Int[Tensor, "B T"] | None = None,
    ) -> SentenceOutput:
        """The logits of padded sentences.

        Args:
            input_ids: token numbers, (B, T).
            attention_mask: 1 for a token, 0 for padding, (B, T).
            token_type_ids: which sentence of a pair a token is of, (B, T); None leaves it to the encoder.
        """
        extra = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        hidden_BTD = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **extra).last_hidden_state
        pooled_BD = pool(hidden_BTD, attention_mask, self.pooling)
        return SentenceOutput(self.head(pooled_BD))

    def save(self, path: Path, tokenizer: Any, labels: dict[str, Any]) -> None:
        """Writes a sentence-transformers directory whose last module, a Dense, is the head.

        Args:
            path: directory, which must not exist.
            tokenizer: is saved beside the encoder.
            labels: `id2label` and the like, for the encoder's config.
        """
        modules = json.loads((self.source / "modules.json").read_text())
        modules = [module for module in modules if module["type"].endswith((".Transformer", ".Pooling"))]
        _copy_settings(self.source, path)
        encoder: Any = self.encoder
        encoder.config.update(labels)
        encoder.save_pretrained(path / modules[0]["path"])
        tokenizer.save_pretrained(path / modules[0]["path"])
        dense = f"{len(modules)}_Dense"
        (path / dense).mkdir()
        description = {
            "in_features": self.head.in_features,
            "out_features": self.head.out_features,
            "bias": True,
            "activation_function": "torch.nn.modules.linear.Identity",
        }
        (path / dense / "config.json").write_text(json.dumps(description, indent=2))
        tensors = {f"linear.{name}": tensor.detach().contiguous() for name, tensor in self.head.named_parameters()}
        save_file(tensors, path / dense / "model.safetensors")
        place = {"idx": len(modules), "name": str(len(modules)), "path": dense}
        modules.append(place | {"type": "sentence_transformers.models.Dense"})
        (path / "modules.json").write_text(json.dumps(modules, indent=2))


def module_folders(path: Path) -> list[str]:
    """The folders of a sentence-transformers directory that hold its modules; none for other models.

    Raises:
        ValueError: `modules.json` is damaged, or names a place that is no folder right there.
    """
    listed = path / "modules.json"
    if not listed.is_file():
        return []
    try:
        names = [module["path"] for module in json.loads(listed.read_text(encoding="utf-8"))]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{listed} is damaged ({error}). Copy the model again.") from None
    if wrong := [name for name in names if not isinstance(name, str) or set("/\\") & {*name} or name in (".", "..")]:
        raise ValueError(f"{listed} names {wrong[0]!r}, which is no folder of the model.")
    return names


def pool(hidden_BTD: Float[Tensor, "B T D"], mask_BT: Int[Tensor, "B T"], mode: str) -> Float[Tensor, "B D"]:
    """Pools token features over the real tokens: "mean", "cls", "max" or "lasttoken"."""
    if mode == "cls":
        return hidden_BTD[:, 0]
    if mode == "lasttoken":
        last_B = mask_BT.shape[1] - 1 - mask_BT.flip(1).argmax(1)
        return hidden_BTD[torch.arange(len(last_B), device=last_B.device), last_B]
    if mode == "max":
        return hidden_BTD.masked_fill(mask_BT[:, :, None] == 0, float("-inf")).amax(1)
    weights_BT1 = mask_BT[:, :, None].to(hidden_BTD.dtype)
    return (hidden_BTD * weights_BT1).sum(1) / weights_BT1.sum(1).clamp(min=1)


def _copy_settings(source: Path, path: Path) -> None:
    """Copies a sentence-transformers directory but for weights and the modules that a save replaces."""
    skipped = shutil.ignore_patterns(
        "*.safetensors", "*.bin", "*.h5", "*.onnx", "onnx", "openvino", "*_Dense", "*_Normalize", ".*", "README.md"
    )
    names = {entry.name for entry in source.iterdir()}
    path.mkdir()
    for name in sorted(names - skipped(str(source), sorted(names))):
        if (source / name).is_dir():
            _copy_settings(source / name, path / name)
        else:
            shutil.copyfile(source / name, path / name)


def _read_pooling(path: Path) -> str:
    config = json.loads(path.read_text())
    chosen = [mode for name, mode in POOLING_MODES.items() if config.get(name)]
    chosen = [config["pooling_mode"]] if "pooling_mode" in config else chosen
    if len(chosen) != 1 or chosen[0] not in POOLING_MODES.values():
        raise ValueError(
            f"{path} asks for the pooling {chosen or config}; one of {', '.join(POOLING_MODES.values())} is supported."
        )
    return chosen[0]


def _without_pooler(path: Path) -> dict[str, Any]:
    """BERT-like encoders carry a pooler that sentence encoders never trained nor use."""
    kind = json.loads((path / "config.json").read_text()).get("model_type") if (path / "config.json").exists() else None
    return {"add_pooling_layer": False} if kind in {"bert", "roberta", "xlm-roberta", "camembert"} else {}
