"""Knowledge in prompts: what dictionaries and GPT-3 say of a class, appended to its prompts (K-LITE in ELEVATER).

The published files are JSON lists, though they are called `.tsv`: `{classname, def_wiki, def_wn, path_wn}` of Wiktionary and
WordNet, `{classname, gpt3}` of five texts. A prompt with the item k of the class c is

    template(c) + " ; c , k"   with the appended part as `word_tokens` sets it apart,

and the class's row is the mean over templates and items, made unit again.

Two modes differ. *faithful*, as the released code: one dictionary survives of those asked for (the hierarchy before
WordNet's definition before Wiktionary's); an empty text is an item like others (` ; c ,`), and a missing one (null) is an
item that leaves the prompt as it is. *honest*: every dictionary that is asked for gives an item, and only texts that say
something are items; a class without any keeps its plain prompts.

Letters: M prompts, C classes, E embedding.
Source: ELEVATER, section 3.3; `extract_text_features` of the toolkit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ostension.config import require
from ostension.errors import ConfigError, DataError, LimitError
from ostension.evals.elevater.sets import image_sets
from ostension.evals.elevater.word_tokens import word_tokens
from ostension.evals.inputs import Inputs, Names, unit
from ostension.files import read_json
from ostension.shapes import Float
from ostension.text.prompts import fill

Mode = Literal["faithful", "honest"]
Dictionary = Literal["wiktionary", "wordnet", "hierarchy"]
FIELDS: dict[Dictionary, str] = {"wiktionary": "def_wiki", "wordnet": "def_wn", "hierarchy": "path_wn"}
SURVIVES: tuple[Dictionary, ...] = ("hierarchy", "wordnet", "wiktionary")  # the first of them that is asked for
HYPERNYMS = 3  # of a path
GPT3_ITEMS = 5  # published for each class
MAX_FILE_BYTES = 50_000_000  # a hundred times ImageNet's

Items = Mapping[str, tuple[str | None, ...]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class KnowledgeConfig:
    """What is appended to the prompts.

    Attributes:
        folder: where the files lie (see `find_files`).
        dictionaries: of "wiktionary", "wordnet" (definitions) and "hierarchy" (WordNet's path upwards).
        num_gpt3: how many of GPT-3's texts, the first ones, 0 to 5.
        rule: "and" appends GPT-3's texts beside the dictionary's (WIKI_AND_GPT3), "then" only where that says nothing
            (WIKI_THEN_GPT3).
        mode: "faithful" to the released code, or "honest" (see the module).
    """

    folder: str = ""
    dictionaries: tuple[Dictionary, ...] = ()
    num_gpt3: int = 0
    rule: Literal["and", "then"] = "and"
    mode: Mode = "honest"

    def __post_init__(self):
        require(len(set(self.dictionaries)) == len(self.dictionaries), "dictionaries", self.dictionaries, "each once")
        require(0 <= self.num_gpt3 <= GPT3_ITEMS, "num_gpt3", self.num_gpt3, f"0 to {GPT3_ITEMS}")
        expected = "a folder of files, and dictionaries or num_gpt3 above 0, or neither"
        require(bool(self.folder) == self.wanted, "folder", self.folder, expected)
        both = bool(self.dictionaries) and self.num_gpt3 > 0
        require(self.rule == "and" or both, "rule", self.rule, "'and', unless there are dictionaries and GPT-3's texts")

    @property
    def wanted(self) -> bool:
        """Whether anything is appended."""
        return bool(self.dictionaries) or self.num_gpt3 > 0

    @property
    def read_dictionaries(self) -> tuple[Dictionary, ...]:
        """Those that have an effect: in faithful mode only the one that survives."""
        if self.mode == "honest":
            return self.dictionaries
        return tuple(name for name in SURVIVES if name in self.dictionaries)[:1]


def read_dictionary(path: Path) -> dict[str, dict[Dictionary, str | None]]:
    """By class name, what each dictionary says; None where the file has a null. Of a name that comes twice the last counts.

    Raises:
        DataError, LimitError: for a file of another form, naming the entry.
    """
    found: dict[str, dict[Dictionary, str | None]] = {}
    for place, name, entry in _entries(path, ("def_wiki", "def_wn", "path_wn")):
        chain = entry["path_wn"]
        if isinstance(chain, list) and all(isinstance(step, str) for step in chain):
            entry["path_wn"] = " ".join(chain[:HYPERNYMS])
        found[name] = {}
        for dictionary, field in FIELDS.items():
            if not isinstance(entry[field], str | None):
                raise DataError(f"{field} of entry {place} ({name!r}) is {entry[field]!r}", source=path, expected="a text")
            found[name][dictionary] = entry[field]
    return found


def read_gpt3(path: Path) -> dict[str, tuple[str, ...]]:
    """By class name, GPT-3's texts. Of a name that comes twice the last counts.

    Raises:
        DataError, LimitError: for a file of another form, naming the entry.
    """
    found = {}
    for place, name, entry in _entries(path, ("gpt3",)):
        texts = entry["gpt3"]
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise DataError(f"gpt3 of entry {place} ({name!r}) is {texts!r}", source=path, expected="a list of texts")
        found[name] = tuple(texts)
    return found


def find_files(folder: Path, task_name: str) -> tuple[Path, Path]:
    """Where the toolkit's folder of knowledge has the files of a task: the dictionaries' and GPT-3's.

    They are looked for as the toolkit lays them out (`external/NAME_knowledge.tsv`, `gpt3/GPT3_NAME.tsv`) and all in one
    folder, by the leaderboard's name of the set or by the task's.

    Raises:
        ConfigError: if there is no such folder.
    """
    if not folder.is_dir():
        raise ConfigError("no such folder", source=folder, expected="the folder of knowledge files")
    names = [task_name, *(entry.name for entry in image_sets().values() if entry.task == task_name)]
    places = []
    for below, pattern in (("external", "{}_knowledge.tsv"), ("gpt3", "GPT3_{}.tsv")):
        known = [root / pattern.format(name) for name in reversed(names) for root in (folder / below, folder)]
        places.append(next((path for path in known if path.is_file()), known[0]))
    return places[0], places[1]


def read_items(config: KnowledgeConfig, task_name: str, names: Names) -> Items:
    """The items of each class by its label key; None is an item that leaves the prompt as it is.

    Classes are looked up by their first name, or by that of the published files where it is another.

    Raises:
        ConfigError: for a folder that is not there.
        DataError: for files of another form, or without some of the classes.
    """
    dictionary_file, gpt3_file = find_files(Path(config.folder), task_name)
    published = next((entry.published_names for entry in image_sets().values() if entry.task == task_name), {})
    called = {key: published.get(key, several[0]) for key, several in names.items()}
    spoken: dict[str, list[str | None]] = {key: [] for key in names}
    if config.dictionaries:
        known = read_dictionary(dictionary_file)
        _check_all_there(called.values(), known, dictionary_file)
        for key, name in called.items():
            texts = [known[name][dictionary] for dictionary in config.read_dictionaries]
            spoken[key] = [text for text in texts if text or config.mode == "faithful"]
    if config.num_gpt3:
        said = read_gpt3(gpt3_file)
        _check_all_there(called.values(), said, gpt3_file)
        for key, name in called.items():
            if config.rule == "and" or not spoken[key]:
                texts = [text for text in said[name] if text.strip() or config.mode == "faithful"]
                spoken[key] += texts[: config.num_gpt3]
    return {key: tuple(texts) for key, texts in spoken.items()}


def with_item(prompt: str, class_name: str, item: str | None) -> str:
    """A prompt with one piece of knowledge appended."""
    if item is None:
        return prompt
    return f"{prompt} {' '.join(word_tokens(f' ; {class_name} , {item}'))}"


def prompts_of(class_name: str, templates: Iterable[str], items: Iterable[str | None]) -> list[str]:
    """All prompts of a class: each template with each item, or the plain templates where there is no item."""
    plain = [fill(template, class_name) for template in templates]
    several = tuple(items) or (None,)
    return [with_item(prompt, class_name, item) for item in several for prompt in plain]


def knowledge_classifier(inputs: Inputs, items: Items) -> Float[np.ndarray, "C E"]:
    """Unit rows of the classes from prompts with knowledge. Only the first name of a class is used, as in the toolkit;
    prompts that are too long are cut.

    The toolkit cuts the end-of-text token off with the rest, and its text tower then reads its feature at whatever token has
    the largest number; here the end token stays.
    """
    templates = inputs.task.prompt_templates()
    groups = {key: prompts_of(several[0], templates, items[key]) for key, several in inputs.names().items()}
    unique = list(dict.fromkeys(prompt for group in groups.values() for prompt in group))
    rows = inputs.texts(unique, truncate=True)
    place = {prompt: index for index, prompt in enumerate(unique)}
    means = [rows[[place[prompt] for prompt in group]].mean(axis=0, dtype=np.float64) for group in groups.values()]
    return unit(np.stack(means), [f"the class {key!r}" for key in groups])


def _entries(path: Path, fields: tuple[str, ...]) -> Iterable[tuple[int, str, dict[str, Any]]]:
    try:
        size = path.stat().st_size
    except OSError:
        raise DataError("no such file", source=path, expected="a published file of knowledge (JSON)") from None
    if size > MAX_FILE_BYTES:
        raise LimitError(f"has {size:,} bytes", source=path, expected=f"at most {MAX_FILE_BYTES:,}")
    try:
        tree = read_json(path)
    except RecursionError:
        raise DataError("not JSON: nested too deeply", source=path) from None
    expected = f"a JSON list of objects with classname, {', '.join(fields)}"
    if not isinstance(tree, list) or not tree:
        raise DataError("not a list of entries", source=path, expected=expected)
    for place, entry in enumerate(tree):
        lacking = [field for field in ("classname", *fields) if not isinstance(entry, dict) or field not in entry]
        if lacking or not isinstance(entry["classname"], str):
            raise DataError(f"entry {place} lacks {', '.join(lacking) or 'a name'}", source=path, expected=expected)
        yield place, entry["classname"], dict(entry)


def _check_all_there(names: Iterable[str], known: Mapping[str, Any], path: Path) -> None:
    missing = [name for name in names if name not in known]
    if missing:
        shown = ", ".join(map(repr, missing[:3])) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise DataError(f"nothing about {shown}", source=path, expected=f"an entry for every class ({len(known)} are there)")
