"""Cells of a table as a spreadsheet writes and opens them."""


def decimal(text: str) -> float:
    """Return the number in a cell, with a decimal point or comma. Raises ValueError for what is no number."""
    return float(text.replace(",", ".") if text.count(",") == 1 and "." not in text else text)


def plain_cell(text: str) -> str:
    """Return the text with an apostrophe before it where a spreadsheet would run it as a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
