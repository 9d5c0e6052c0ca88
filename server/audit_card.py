"""What a model card says of an audit: the worst of all attacked sites, none of them named."""

from collections.abc import Sequence

from common.audit_record import AuditRecord, Reconstruction

NOT_AUDITED = "**Not audited.** Nobody attacked this model, or the sites that made it, and told what was found."


def audited(record: AuditRecord) -> str:
    """Return the part of a card about an audit, in Markdown."""
    failures = list(record.failures())
    lines = [
        "`crossprobe audit` attacked sites of this very model, known by the SHA-256 of study and weights. Each figure",
        "is that of the worst site. Attacks on images propose studies of their own, not the rounds of this one.",
        "",
        *_reconstruction(record),
        "",
        *_membership(record),
        "",
        *_numbers(record),
        "",
        "**It failed:**" if failures else "It found nothing that it counts as a failure. Other attacks may.",
        *(f"- {failure}" for failure in failures),
    ]
    return "\n".join(lines)


def _reconstruction(record: AuditRecord) -> list[str]:
    lines = [
        "| images rebuilt from updates, of those tried [95 %] | the sites' own policies | policies' limits lifted |",
        "| --- | --- | --- |",
    ]
    single = [row for row in record.reconstruction if row.summed == 1]
    kinds = {"plain": [row for row in single if row.noise is None]}
    for noise in sorted({row.noise for row in single if row.noise is not None}):
        kinds[f"differential privacy, noise {noise:g}"] = [row for row in single if row.noise == noise]
    kinds["secure aggregation"] = [row for row in record.reconstruction if row.summed > 1]
    for words, rows in kinds.items():
        kept, lifted = ([row for row in rows if row.lifted is which] for which in (False, True))
        under_policy = _worst(kept) or ("all refused" if lifted else "not tried")
        lines.append(f"| {words} | {under_policy} | {_worst(lifted) or 'not tried'} |")
    return lines


def _worst(rows: Sequence[Reconstruction]) -> str:
    if not rows:
        return ""
    from scipy.stats import binomtest  # slow to import, and most cards have no audit

    row = max(rows, key=lambda row: row.rebuilt / row.drawn)
    interval = binomtest(row.rebuilt, row.drawn).proportion_ci(method="wilson")
    return f"{row.attack}: {row.rebuilt} of {row.drawn} [{100 * interval.low:.0f}, {100 * interval.high:.0f} %]"


def _membership(record: AuditRecord) -> list[str]:
    if not record.membership:
        return ["Membership was not attacked."]
    lines = ["| membership told by | AUC [95 %] | found at 1 % false positives, % [95 %] |", "| --- | --- | --- |"]
    for attack in dict.fromkeys(row.attack for row in record.membership):
        worst = max((row for row in record.membership if row.attack == attack), key=lambda row: row.auc)
        low, high = worst.tpr_ci95
        lines.append(
            f"| {attack} | {worst.auc:.2f} [{worst.auc_ci95[0]:.2f}, {worst.auc_ci95[1]:.2f}] | "
            f"{100 * worst.tpr:.0f} [{100 * low:.0f}, {100 * high:.0f}] |"
        )
    return lines


def _numbers(record: AuditRecord) -> list[str]:
    lines, rows = [], [row for row in record.numbers if row.cohorts]
    if not rows:
        return ["Numbers that leave beside the updates were not attacked."]
    for name in dict.fromkeys(row.number for row in rows):
        worst = max((row for row in rows if row.number == name), key=lambda row: row.told)
        lines.append(
            f"- `{name}`, by the difference of two studies: told of {worst.told} of {worst.attacked} single patients."
        )
    return lines
