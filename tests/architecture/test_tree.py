"""docs/architecture.md draws the floors and the files as they are."""

import draw_tree

PAGE = draw_tree.PAGE.read_text(encoding="utf-8")


def test_the_page_shows_what_is_on_disk():
    command = "python tests/architecture/draw_tree.py --write"
    drawn = draw_tree.drawn(PAGE).splitlines()
    assert PAGE.splitlines() == drawn, f"draw it again: {command}"


def test_every_file_is_described():
    assert draw_tree.MISSING not in draw_tree.drawn(PAGE)


def test_a_new_file_and_a_lost_one_show(tmp_path, monkeypatch):
    room = tmp_path / "room"
    room.mkdir()
    (room / "__init__.py").write_text('"""A room."""\n')
    (room / "new.py").write_text('"""What is new.\n\nAnd more.\n"""\n')
    (room / "table.csv").touch()
    monkeypatch.setattr(draw_tree, "SRC", tmp_path)
    lines = list(draw_tree.tree({"room/table.csv": "a table", "room/old.py": "gone"}))
    assert [line.split(maxsplit=1) for line in lines[1:]] == [
        ["room/", "A room"],
        ["new.py", "What is new"],
        ["table.csv", "a table"],
    ]
