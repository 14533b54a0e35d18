"""Tables of figures on a terminal, or in a log."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from isicrt.benchmarks.tables import Table


def open_console(file_width: int) -> Console:
    """The standard output. `file_width`: letters a line, at least, of a file or a pipe, which have no width."""
    # Imported here: it is slow, and no command's --help needs it.
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, file_width)
    return console


def print_table(console: Console, table: Table, *, gap: int = 2) -> None:
    """Title, cells and note; `gap`: spaces between the columns."""
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid(box=None, padding=(0, gap, 0, 0), pad_edge=False)
    for n, name in enumerate(table.header):
        word = n < table.labels
        grid.add_column(
            Text(name, style="bold"),
            justify="left" if word else "right",
            no_wrap=not word,
            overflow="fold",
            min_width=8 if word else len(name),
        )
    for row in table.rows:
        grid.add_row(*map(Text, row))
    console.print(Text(table.title, style="bold cyan"))
    console.print(grid)
    if table.note:
        console.print(Text(table.note, style="dim"))
