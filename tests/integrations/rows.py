"""Rows in files, as users have them."""

import csv
import json


def write_rows(path, rows):
    """Write dictionaries as CSV or JSON lines, as the suffix says; returns the path."""
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
