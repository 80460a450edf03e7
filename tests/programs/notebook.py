"""notebook.py script.py: run a script as a notebook with a real kernel, a few statements a cell, and print what it shows."""

import ast
import itertools
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

STATEMENTS = 10  # in a cell


def cells_of(text):
    """Yield the source of each cell; every line of the script is in one of them."""
    lines = text.splitlines(keepends=True)
    starts = [min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))]) for node in ast.parse(text).body]
    edges = [0, *(line - 1 for line in starts[STATEMENTS::STATEMENTS]), len(lines)]
    for first, last in itertools.pairwise(edges):
        yield "".join(lines[first:last])


def main():
    cells = [nbformat.v4.new_code_cell(cell) for cell in cells_of(Path(sys.argv[1]).read_text())]
    notebook = nbformat.v4.new_notebook(cells=cells)
    try:
        NotebookClient(notebook, timeout=200, kernel_name="python3").execute()
    finally:
        for cell in notebook.cells:
            for output in cell.get("outputs", []):
                print(output.get("text", ""), end="", flush=True)


if __name__ == "__main__":
    main()
