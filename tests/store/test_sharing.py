"""Statements that would end a transaction which is shared with a function, told apart from all others."""

from __future__ import annotations

import pytest

from holdfast.store.sharing import beginning, ends_it

pytestmark = pytest.mark.sampled("what a server does is the same on every Python", every=8)

ENDS = [
    "commit",
    " COMMIT ;",
    "end",
    "abort",
    "rollback",
    "rollback work",
    "begin",
    "begin work",
    "start  transaction",
    "prepare transaction 'x'",
    "commit and chain",
    "-- why\n/* not */ commit",
    ";commit",
]
LETS = [
    "rollback to mine",
    "ROLLBACK WORK TO SAVEPOINT mine",
    "rollback transaction to mine",
    "savepoint commit",
    "select 'commit'",
    "begin not atomic select 1; end",
    "commits",
    "",
    "-- commit",
    "prepare p as select 1",
]
SEVERAL_END = ["select 1; commit", "select ';'; end", "insert into a values ('x''; y'); rollback", "do $$;$$; begin"]
SEVERAL_LET = [
    "select '; commit'",
    "select E'\\'; commit'",
    'select 1 as "; end"',
    "select 1 -- ; commit",
    "select 1 /* ; commit */; select 2",
    "do $x$ begin perform 1; end $x$; select 1",
    "create function f() returns int begin atomic select 1; end; select 1",
    "select 1; rollback to mine;",
]


@pytest.mark.parametrize("sql", ENDS)
def test_what_ends_a_transaction_is_recognised(sql: str) -> None:
    assert ends_it(sql) is not None
    assert ends_it(sql, several=True) is not None


@pytest.mark.parametrize("sql", LETS)
def test_what_does_not_end_it_is_let_through(sql: str) -> None:
    assert ends_it(sql) is None


@pytest.mark.parametrize("sql", SEVERAL_END)
def test_an_end_behind_another_statement_is_recognised_where_there_may_be_several(sql: str) -> None:
    assert ends_it(sql, several=True) is not None
    assert ends_it(sql) is None


@pytest.mark.parametrize("sql", SEVERAL_LET)
def test_an_end_in_a_text_a_name_a_comment_or_a_body_is_none(sql: str) -> None:
    assert ends_it(sql, several=True) is None


def test_a_statement_begins_behind_its_comments() -> None:
    assert beginning("-- one\n/* two */  ; select 1") == "select 1"
