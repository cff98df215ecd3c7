"""The benchmark as text: one line per row while it runs, a Markdown table at the end."""

from __future__ import annotations

from benchmarks.timing import is_wrong


def line(row: dict) -> str:
    """One row for the terminal."""
    return "  ".join(
        [f"{row['work']:18}", f"{row['size']:28}", f"{row['dtype']:8}", f"{row['method']:52}", *_numbers(row)]
    )


def _numbers(row: dict) -> list[str]:
    if row.get("error"):
        return ["failed: " + row["error"]]

    def number(key: str, form: str) -> str:
        return "-" if row.get(key) is None else format(row[key], form)

    return [
        f"{number('seconds', '.4g')} s",
        f"{row['repetitions']}",
        number("ratio_to_fastest_peer", ".3g"),
        number("ratio_to_floor", ".3g"),
        number("relative_error", ".1e"),
    ]


def markdown(document: dict) -> str:
    """The machine, the table of rows and, where it was measured, the growth."""
    lines = [
        _machine(document),
        "",
        "| work | size | dtype | method | time | runs | over fastest peer | over floor | relative error | note |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(_cells(row) for row in document["rows"]),
    ]
    if document["growth"]:
        lines += ["", "| growth of the dense Hessian | fitted exponent | theory |", "|---|---|---|"]
        lines += [f"| {k} | {v['fitted']:.2f} | {v['theory']:.0f} |" for k, v in document["growth"].items()]
    return "\n".join(lines) + "\n"


def _machine(document: dict) -> str:
    floors = document["floors"]
    return (
        f"{document['processor']}; {document['threads']} threads; matrix product "
        f"{floors['matrix_product_float64'] / 1e9:.0f} GFLOP/s in float64, "
        f"{floors['matrix_product_float32'] / 1e9:.0f} in float32; LAPACK eigenvalues of order "
        f"{floors['lapack_order']}: {floors['lapack_seconds']:.2f} s. "
        + ", ".join(f"{name} {number}" for name, number in document["versions"].items() if number)
        + (f". Not installed: {', '.join(document['missing'])}." if document["missing"] else ".")
    )


def _cells(row: dict) -> str:
    numbers = ["fails", "", "", "", ""] if row.get("error") else _numbers(row)
    method = f"**{row['method']}**" if row["is_ours"] else row["method"]
    note = row.get("error") or row.get("note") or ""
    if row["work"] == "growth":
        note = f"peak {row['peak_bytes'] / 2**20:.0f} MB for a matrix of {row['matrix_bytes'] / 2**20:.0f} MB"
    elif is_wrong(row):
        note = f"**wrong**; {note}"
    cells = [row["work"], row["size"], row["dtype"], method, *numbers, note]
    return "| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |"
