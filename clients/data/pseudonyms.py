"""Does a patient's id look like the patient? Such ids never leave, but they stand in logs, tables and screenshots."""

import re

#: A day of the last hundred years, in the orders that people write it.
_YEAR, _MONTH, _DAY = r"(?:19[2-9]\d|20[0-4]\d)", r"(?:0?[1-9]|1[0-2])", r"(?:0?[1-9]|[12]\d|3[01])"
_DATE = re.compile(
    rf"(?<!\d)(?:{_YEAR}[-./_]{_MONTH}[-./_]{_DAY}|{_DAY}[-./_]{_MONTH}[-./_]{_YEAR}"
    r"|(?:19[2-9]\d|20[0-4]\d)(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01]))(?!\d)"
)
_WORD = re.compile(r"[^\W\d_]{3,}")
#: Words alone, written as names are: `Anna Müller`, `Mueller_Anna`.
_WORDS = re.compile(r"[^\W\d_]{2,}(?:[ ._-]+[^\W\d_]{2,})+")
#: Words that a pseudonym is made of, beside a number or the day of the visit.
_HARMLESS = {
    "anon", "case", "exam", "fall", "img", "image", "pat", "patient", "probe", "pseudonym", "scan", "session",
    "series", "site", "source", "study", "sub", "subj", "subject", "target", "train", "test", "val", "video", "visit",
    "wrist",
}  # fmt: skip


def personal(patient: str) -> str:
    """What an id looks like where it may not be a pseudonym, or an empty text."""
    names = [word for word in _WORD.findall(_DATE.sub(" ", patient)) if word.lower() not in _HARMLESS]
    if _DATE.search(patient) and names:
        return "a name with a date of birth"
    written_so = _WORDS.fullmatch(patient.strip()) and sum(name.istitle() for name in names) > 1
    if written_so or re.search(r"[^\W\d_]\s*[\^,]\s*[^\W\d_]", patient):
        return "a family name and a first name"
    return ""


#: What anonymisers, consoles and people write where nobody is to be named.
_PLACEHOLDERS = {
    "anon", "anonym", "anonymous", "anonymized", "anonymised", "deidentified", "n/a", "na", "nil", "nn", "none", "null",
    "unbekannt", "unknown", "unnamed",
}  # fmt: skip
#: A long number as a spreadsheet shows it, its last digits lost.
_ROUNDED = re.compile(r"\d[.,]\d+[eE]\+\d+")


def placeholder(patient: str, *, header: bool = False) -> str:
    """Return why an id may stand for several people at once, or an empty text.

    Args:
        header: it comes from a file's header, where nobody counts patients from 0.
    """
    plain = patient.strip().lower()
    if _ROUNDED.fullmatch(plain):
        return "a number that a spreadsheet rounded"
    if plain in _PLACEHOLDERS or (header and not plain.strip("0")):
        return "which stands for nobody"
    return ""
