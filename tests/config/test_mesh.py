from __future__ import annotations

import pytest

from cord_trio.config import Config, MeshConfig, parse_config
from cord_trio.config.mesh import NAME, default_node
from cord_trio.errors import ConfigError


def toml(text: str) -> Config:
    return parse_config(text, format="toml", file="cord.toml", environ={"HOME": "/home/me", "TOKEN": "hunter2"})


def test_a_mesh_is_read_with_all_that_it_says() -> None:
    config = toml(
        '[mesh]\nservers = ["nats://a:4222", "b"]\nname = "m"\nnode = "n"\nshare = ["w*"]\nagents = ["c*"]\n'
        'groups = { web = "pool" }\n'
        'region = "north"\nlabels = { disk = "big" }\n'
        'credentials = "~/n.nk"\nca = "~/ca.pem"\nreplicas = 3\nremote = 5\n'
    )
    assert config.mesh == MeshConfig(
        servers=("nats://a:4222", "b"), name="m", node="n", share=("w*",), agents=("c*",), groups={"web": "pool"},
        region="north", labels={"disk": "big"}, credentials="/home/me/n.nk", ca="/home/me/ca.pem", replicas=3, remote=5,
    )  # fmt: skip
    assert config.mesh.told == {"region": "north", "disk": "big"}
    assert (config.mesh.shares("web"), config.mesh.shares("notes")) == (True, False)
    assert (config.mesh.lends("clerk"), config.mesh.lends("web")) == (True, False)


def test_a_group_of_a_source_that_is_not_there_is_noted() -> None:
    mesh = '[mesh]\nservers = ["nats://a"]\ngroups = { wep = "pool" }\n'
    for sources, remedy in (("", "configure it"), ('[sources.web]\ncommand = "x"\n', "did you mean web?")):
        (problem,) = toml(mesh + sources).problems
        assert (problem.path, problem.remedy, problem.fatal) == ("mesh.groups.wep", remedy, False)


def test_a_mesh_alone_is_enough_and_its_token_is_shown_nowhere() -> None:
    config = toml('[mesh]\nservers = ["nats://a"]\ntoken = "${TOKEN}"\n')
    assert config.problems == ()
    assert config.mesh is not None
    assert config.mesh.token == "hunter2"
    assert "hunter2" not in repr(config)
    assert config.mesh.node == default_node()
    assert NAME.fullmatch(default_node())


def test_the_url_of_a_server_may_hold_variables() -> None:
    config = toml('[mesh]\nservers = ["${TOKEN}", "nats://${OTHER:-b}:4223"]\n')
    assert config.mesh is not None
    assert config.mesh.servers == ("hunter2", "nats://b:4223")


def test_keys_are_read_one_or_several_and_shown_nowhere() -> None:
    for text, keys in (('"${KEY}"', 1), ('["${KEY}", "${KEY}"]', 2)):
        config = parse_config(
            f'[mesh]\nservers = ["nats://a"]\nkey = {text}\ncallers = ["*@n"]\n',
            format="toml", file="cord.toml", environ={"KEY": "k" * 32},
        )  # fmt: skip
        assert config.mesh is not None
        assert config.mesh.key == ("k" * 32,) * keys
        assert config.mesh.callers == ("*@n",)
        assert "k" * 32 not in repr(config)


def test_without_the_table_there_is_no_mesh() -> None:
    assert toml("[gateway]\n").mesh is None


@pytest.mark.parametrize(
    ("text", "path", "words"),
    [
        ("", "mesh.servers", "names no server"),
        ('servers = ["http://a"]', "mesh.servers[0]", "is not the URL of a NATS server"),
        ('servers = ["nats://a:b"]', "mesh.servers[0]", "is not a URL"),
        ('servers = ["nats://me:pw@a"]', "mesh.servers[0]", "holds credentials"),
        ('servers = ["a"]\nnode = "A b"', "mesh.node", "is no name"),
        ('servers = ["a"]\nname = "a.b"', "mesh.name", "is no name"),
        ('servers = ["a"]\ngroups = { web = "" }', "mesh.groups.web", "is no name"),
        ('servers = ["a"]\ncredentials = "x"\ntoken = "y"', "mesh.token", "is given beside credentials"),
        ('servers = ["a"]\nregion = "a"\nlabels = { region = "b" }', "mesh.labels.region", "is not what region says"),
        ('servers = ["a"]\nkey = ["short"]', "mesh.key[0]", "has 5 characters"),
        ('servers = ["a"]\nkey = ""', "mesh.key[0]", "has 0 characters"),
        ('servers = ["a"]\nkey = "${NOT_SET}"', "mesh.key", ""),
        ('servers = ["a"]\ncallers = [""]', "mesh.callers[0]", "is an empty glob"),
        ('servers = ["a"]\ncallers = ["*@b", "kitchen"]', "mesh.callers[1]", "'kitchen' is nobody: each is WHO@NODE"),
        ('servers = ["a", "nats://${NOT_SET}:4222"]', "mesh.servers[1]", "NOT_SET is not set"),
        ('servers = ["a"]\nreplicas = 0', "mesh.replicas", ""),
        ('servers = ["a"]\ntoken = "${NOT_SET}"', "mesh.token", ""),
        ('servers = ["a"]\nnodes = "x"', "mesh.nodes", "is not known"),
        ("servers = 7", "mesh.servers", "is a number"),
    ],
)
def test_what_is_wrong_is_told_where_it_is(text: str, path: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        toml(f"[mesh]\n{text}\n")
    told = [problem for problem in caught.value.problems if problem.path == path]
    assert any(words in problem.what for problem in told), caught.value.problems
    assert "pw" not in str(caught.value)
