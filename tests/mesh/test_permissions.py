from __future__ import annotations

from cord_trio.mesh.permissions import Member, permissions_of, server_config


def test_a_node_may_do_what_is_its_own_and_call_whom_it_may() -> None:
    assert permissions_of(Member("a", "UA", ("b", "c"), registrar=False), "m") == {
        "publish": {
            "allow": [
                "c1.m.call.b.*.a",
                "c1.m.call.c.*.a",
                "c1.m.call.a.*.a",
                "$KV.cord_m.up.a",
                "$KV.cord_m.hb.a.*",
                "$KV.cord_m.cat.>",
                "$KV.cord_m.ag.*",
                "$JS.API.STREAM.CREATE.KV_cord_m",
                "$JS.API.STREAM.INFO.KV_cord_m",
                "$JS.API.CONSUMER.CREATE.KV_cord_m",
                "$JS.API.CONSUMER.CREATE.KV_cord_m.>",
                "$JS.API.DIRECT.GET.KV_cord_m.>",
                "$JS.FC.KV_cord_m.>",
                "*.*.in.*.*",
            ]
        },
        "subscribe": {"allow": ["_INBOX_a.>", "c1.m.call.a.*.*"]},
        "allow_responses": {"max": -1, "expires": "1h"},
    }


def test_a_registrar_may_write_the_records_of_all_and_who_may_call_all_needs_no_names() -> None:
    allowed = permissions_of(Member("a", "UA"), "m")["publish"]
    assert isinstance(allowed, dict)
    assert allowed["allow"][0] == "c1.m.call.*.*.a"
    assert {"$KV.cord_m.up.*", "$KV.cord_m.hb.*.*"} <= set(allowed["allow"])


def test_a_configuration_holds_each_node_and_nobody_else() -> None:
    text = server_config([Member("a", "UA"), Member("b", "UB")], "m", listen="0.0.0.0:4222", store="/x y")
    assert text.count("nkey") == 2
    assert '{"nkey": "UA"' in text
    assert 'store_dir: "/x y"' in text
    assert "no_auth_user" not in text
