"""Random text of a given length, in words or in exact tokens."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_WORD_TEXT = """
able about above across after again air all along also always and animal answer any area arm
ask back bank base bear best better big bird black blue board boat body book both bottom box
bread bring brown build but buy call came can car care carry case catch cause centre change
check child circle city class clean clear close cloud coast cold colour come common cook cool
copper corn cost count country course cover cross crowd current cut dance dark day deep desk
differ door down draw dream drink drive drop dry during each early earth east easy eat edge
egg eight else end energy engine enough even every exact eye face fact fall family far farm
fast field fight figure fill find fine finger fire fish five floor flow flower fly follow food
foot force forest form found four free fresh friend front fruit full game garden gas gave
general girl give glass gold good grand grass great green ground group grow hand happen hard
head hear heart heat heavy help high hill history hold home horse hot hour house hundred ice
idea inch island join jump just keep kind king know lake land language large last late laugh
lead learn leave left leg letter level lie life light line list listen little live long look
machine main make many map mark market master matter mean measure meat metal method middle
mile milk mind minute moment money month moon morning mother motion mountain mouth move music
name nation nature near neck never new next night nine noise north nothing notice number
object ocean office oil once only open order other over page pair paper part pass past path
pattern people perhaps period person picture piece place plain plan plane planet plant play
point poor port possible power press pretty problem process produce proper pull push question
quick quiet race radio rain range reach read ready reason record red region remember rest rich
ride right ring rise river road rock roll room root rope rose round row rule run safe sail
salt same sand save scale school science sea season seat second seed sell send sense serve set
seven shape share sharp ship shoe shop short shoulder show side sign silent silver simple
single sister sit six size skin sky sleep slow small smell smile snow soft soil solve some
song soon sound south space speak speed spell spot spring square stand star start state
station stay steam steel step stick still stone stop store storm story straight strange stream
street string strong student study sudden sugar summer sun supply sure surface swim system
table tail talk tall teach team tell ten test thick thin thing think third thought thousand
three through time tiny tire tone tool top total touch town track trade train travel tree
triangle trip trouble truck true try turn twelve twenty two under unit until usual valley value
village visit voice wait walk wall want war warm wash watch water wave way weather week weight
west wheel white whole wide wild wind window winter wire wish wonder wood word work world
write wrong yard year yellow young
"""
WORDS: tuple[str, ...] = tuple(_WORD_TEXT.split())


class WorkloadError(ValueError):
    """A workload that cannot be made or sent as asked."""


class PromptMaker:
    """Makes random texts from a word list; exact in tokens where a tokenizer is given.

    Args:
        tokenizer: A `tokenizer.json`, or a folder that holds one.
        words: The vocabulary to draw from; default `WORDS`.
    """

    def __init__(
        self, tokenizer: str | Path | None = None, words: Sequence[str] | None = None
    ) -> None:
        self.words = WORDS if words is None else tuple(words)
        if not self.words:
            raise WorkloadError("the word list is empty")
        self.tokenizer = None if tokenizer is None else load_tokenizer(tokenizer)

    def prompt(self, rng: random.Random, length: int, token_ids: bool) -> str | tuple[int, ...]:
        """Return a text, or its token ids, of exactly `length` tokens (words without a tokenizer)."""
        if not token_ids:
            return self.text(rng, length)
        if self.tokenizer is None:
            raise WorkloadError("token_ids=True needs tokenizer=")
        return tuple(self._ids(" ".join(rng.choices(self.words, k=length)))[:length])

    def text(self, rng: random.Random, length: int) -> str:
        """Return a text of exactly `length` tokens (words without a tokenizer).

        Raises:
            WorkloadError: If no text of that token length was found.
        """
        if length < 1:
            raise WorkloadError(f"a prompt needs at least 1 token, not {length}")
        if self.tokenizer is None:
            return " ".join(rng.choices(self.words, k=length))
        for _ in range(50):
            chosen = rng.choices(self.words, k=length)
            if (text := self._fit(rng, chosen, length)) is not None:
                return text
        raise WorkloadError(
            f"no text of exactly {length} tokens found with this word list; "
            "use token_ids=True with api='completions', or other words"
        )

    def _fit(self, rng: random.Random, chosen: list[str], length: int) -> str | None:
        # A word is at least one token, so `length` words are enough: cut to the longest part
        # that fits, then exchange the last words until it fits exactly.
        low, high = 0, len(chosen)
        while low < high:
            middle = (low + high + 1) // 2
            if len(self._ids(" ".join(chosen[:middle]))) <= length:
                low = middle
            else:
                high = middle - 1
        kept = chosen[:low]
        for _ in range(200):
            text = " ".join(kept)
            count = len(self._ids(text)) if kept else 0
            if count == length:
                return text
            if count > length:
                del kept[-rng.randint(1, 3) :]
            else:
                kept.append(rng.choice(self.words))
        return None

    def _ids(self, text: str) -> list[int]:
        assert self.tokenizer is not None
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read a `tokenizer.json`, or the one in a model's folder.

    Raises:
        WorkloadError: If there is none.
    """
    from tokenizers import Tokenizer

    file = Path(path)
    if file.is_dir():
        file /= "tokenizer.json"
    if not file.is_file():
        raise WorkloadError(f"no tokenizer at {file}: give a tokenizer.json or a model's folder")
    return Tokenizer.from_file(str(file))
