"""Tensors of other people's files, after their headers have been looked at: of safetensors one by one, of a
.bin file all at once."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from toolkit.errors import UserError
from toolkit.files import read_json
from toolkit.mgm.pickled import assert_tensors

HEADER = 1 << 22  # bytes of a safetensors header: that of MGM-2B has some 100 kB


class Weights(Mapping[str, Tensor]):
    """The tensors of a folder or file by name, read when asked for.

    A folder holds one of model.safetensors(.index.json), open_clip_model.safetensors,
    pytorch_model.bin(.index.json), open_clip_pytorch_model.bin. UserError when it holds none or a shard is
    missing or damaged.
    """

    NAMES = (
        "model.safetensors",
        "open_clip_model.safetensors",
        "pytorch_model.bin",
        "open_clip_pytorch_model.bin",
    )

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._bins: dict[Path, dict[str, Tensor]] = {}
        self._opened: dict[Path, safe_open] = {}
        self._files: dict[str, Path] = {}
        for file in self._list():
            self._files.update(
                dict.fromkeys(self._bin(file) if file.suffix == ".bin" else self._safetensors(file), file)
            )
        if self._placed is not None and self._placed != self._files:
            name = min(
                name
                for name in self._placed.keys() | self._files
                if self._placed.get(name) != self._files.get(name)
            )
            raise UserError(
                f"{self.path}: the index and the shards place {name} in different files, or one of them does "
                "not know it"
            )

    def _list(self) -> list[Path]:
        self._placed: dict[str, Path] | None = None
        if self.path.is_file():
            return [self.path]
        if not self.path.exists():
            raise UserError(f"{self.path} does not exist")
        for name in self.NAMES:
            index = self.path / f"{name}.index.json"
            if index.is_file():
                placed = value.get("weight_map") if isinstance(value := read_json(index), dict) else None
                if not isinstance(placed, dict) or not placed:
                    raise UserError(f"{index} has no weight_map")
                shards = sorted(set(map(str, placed.values())))
                if missing := [
                    shard
                    for shard in shards
                    if Path(shard).name != shard or not (self.path / shard).is_file()
                ]:
                    raise UserError(f"{index} names shards that are missing: {', '.join(missing)}")
                self._placed = {name: self.path / shard for name, shard in placed.items()}
                return [self.path / shard for shard in shards]
            if (self.path / name).is_file():
                return [self.path / name]
        raise UserError(
            f"{self.path} holds no weights: expected one of {', '.join(self.NAMES)} or their index"
        )

    def _bin(self, file: Path) -> list[str]:
        try:
            assert_tensors(file)
            # not memory-mapped: only then torch compares the length of the numbers with what the pickle says
            tensors = torch.load(file, map_location="cpu", weights_only=True)
        except UnpicklingError:  # whose text advises to load it without `weights_only`
            raise UserError(
                f"{file} is not a readable PyTorch weights file: its pickle does not put tensors together"
            ) from None
        except Exception as error:  # what a pickle can raise has no end
            raise UserError(
                f"{file} is not a readable PyTorch weights file: {''.join(str(error).splitlines()[:1])}"
            ) from None
        if not isinstance(tensors, dict):
            raise UserError(f"{file} is not a readable PyTorch weights file: it holds no dict of tensors")
        for name, tensor in tensors.items():
            # a view may repeat numbers, and then claims more memory than the file has
            if not (
                isinstance(name, str)
                and isinstance(tensor, Tensor)
                and tensor.nbytes <= tensor.untyped_storage().nbytes()
            ):
                raise UserError(
                    f"{file} is not a readable PyTorch weights file: an entry is not a tensor with all its "
                    "numbers"
                )
        self._bins[file] = tensors
        return list(tensors)

    def _safetensors(self, file: Path) -> list[str]:
        try:
            with file.open("rb") as handle:
                length = int.from_bytes(handle.read(8), "little")
            if length > HEADER:
                raise UserError(
                    f"{file} is not a readable safetensors file: a header of {length} bytes, at most "
                    f"{HEADER} are read"
                )
            self._opened[file] = safe_open(file, framework="pt")
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} is not a readable safetensors file: {error}") from None
        return list(self._opened[file].keys())

    def __getitem__(self, name: str) -> Tensor:
        file = self._files[name]
        if file in self._bins:
            return self._bins[file][name].detach().contiguous()
        try:
            return self._opened[file].get_tensor(name)
        # of types that torch lacks
        except (SafetensorError, KeyError, AttributeError, TypeError, ValueError) as error:
            raise UserError(f"{file}: {name} cannot be read: {error}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def files(self) -> list[Path]:
        """The files that hold the tensors."""
        return sorted(set(self._files.values()))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape by name, without reading the data."""
        shapes = {}
        for name, file in self._files.items():
            shape = (
                self._bins[file][name].shape
                if file in self._bins
                else self._opened[file].get_slice(name).get_shape()
            )
            shapes[name] = tuple(shape)
        return shapes

    def renamed(self, old: str, new: str) -> dict[str, Tensor]:
        """The tensors whose names start with `old`, under names that start with `new`."""
        return {new + name[len(old) :]: self[name] for name in self if name.startswith(old)}
