"""Downloads against a local server that breaks connections, ignores ranges and serves wrong bytes."""

from __future__ import annotations

import errno
import hashlib
import http.server
import multiprocessing
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, ClassVar

import pytest

from utils.download import download, fetch, main
from utils.download_table import BY_HAND, FILES, RemoteFile
from utils.errors import UserError

BODY = bytes(i * 7919 % 251 for i in range(300_000))
DIGEST = hashlib.sha256(BODY).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    requests: ClassVar[list[tuple[str, str | None]]] = []

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.requests.append((self.path, wanted))
        number = len(self.requests)
        body, begin = BODY, int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if self.path == "/wrong" or (self.path == "/wrong_once" and number == 1):
            body = b"x" * len(BODY)
        if self.path == "/gone":
            self.send_error(404)
            return
        if self.path == "/busy" and number < 3:
            self.send_error(503)
            return
        if begin >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.end_headers()
            return
        partial = bool(wanted) and self.path != "/no_range"
        rest = body[begin:] if partial else body
        self.send_response(206 if partial else 200)
        self.send_header("Content-Length", str(len(rest)))
        if partial:
            self.send_header("Content-Range", f"bytes {begin}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        is_cut = self.path in ("/break", "/no_range") and number < 4
        self.wfile.write(rest[:90_000] if is_cut else rest)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Handler.requests.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


def remote(url: str, **known: object) -> RemoteFile:
    settings = {"num_bytes": len(BODY), "sha256": DIGEST, **known}
    return RemoteFile(url, "file.bin", "a test file", **settings)


def get(url: str, target: Path, **known: object) -> Path:
    return download(remote(url, **known), target, attempts=4, pause_seconds=0.001)


def test_downloads_once_and_leaves_only_whole_files(server: str, tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.bin"
    assert get(f"{server}/plain", target) == target
    assert target.read_bytes() == BODY
    get(f"{server}/plain", target)
    assert len(Handler.requests) == 1
    assert not list(target.parent.glob("*.part"))


@pytest.mark.parametrize("known", [{}, {"num_bytes": None}, {"num_bytes": None, "sha256": None}])
def test_a_broken_connection_is_gone_on_with(server: str, tmp_path: Path, known: dict[str, object]) -> None:
    target = get(f"{server}/break", tmp_path / "file.bin", **known)
    assert target.read_bytes() == BODY
    ranges = [wanted for _, wanted in Handler.requests]
    assert ranges == [None, "bytes=90000-", "bytes=180000-", "bytes=270000-"]


def test_a_server_that_ignores_ranges_starts_over(server: str, tmp_path: Path) -> None:
    assert get(f"{server}/no_range", tmp_path / "file.bin").read_bytes() == BODY
    assert Handler.requests[1][1] == "bytes=90000-"


def test_a_part_of_an_earlier_process_is_used(server: str, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(BODY[:1000])
    assert get(f"{server}/plain", tmp_path / "file.bin").read_bytes() == BODY
    assert Handler.requests == [("/plain", "bytes=1000-")]


def test_a_part_that_is_already_whole(server: str, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(BODY)
    assert get(f"{server}/plain", tmp_path / "file.bin", num_bytes=None).read_bytes() == BODY


def test_a_part_with_wrong_bytes_is_dropped(server: str, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(b"y" * 1000)
    assert get(f"{server}/plain", tmp_path / "file.bin").read_bytes() == BODY
    (tmp_path / "other.bin.part").write_bytes(b"y" * (len(BODY) + 5))
    assert get(f"{server}/plain", tmp_path / "other.bin", num_bytes=None).read_bytes() == BODY


def test_wrong_bytes_are_removed_and_said(server: str, tmp_path: Path) -> None:
    target = tmp_path / "file.bin"
    with pytest.raises(UserError) as caught:
        get(f"{server}/wrong", target)
    text = str(caught.value)
    assert "a test file: cannot be downloaded (what the server sent has the wrong contents (SHA-256 " in text
    assert "it was removed" in text
    assert f"address: {server}/wrong" in text
    assert f"put it at {target}" in text
    assert "UNMASKED_CACHE" in text
    assert not target.exists()
    assert not list(tmp_path.glob("*.part"))


def test_wrong_bytes_once_are_downloaded_again(server: str, tmp_path: Path) -> None:
    assert get(f"{server}/wrong_once", tmp_path / "file.bin").read_bytes() == BODY


def test_a_wrong_file_in_the_cache_is_replaced(server: str, tmp_path: Path) -> None:
    target = tmp_path / "file.bin"
    target.write_bytes(BODY[:-1])
    assert get(f"{server}/plain", target, num_bytes=None).read_bytes() == BODY


def test_a_right_file_put_there_by_hand_needs_no_network(tmp_path: Path) -> None:
    target = tmp_path / "file.bin"
    target.write_bytes(BODY)
    assert get("http://127.0.0.1:9/none", target) == target


def test_a_cache_that_cannot_be_written_is_told_and_what_it_holds_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there.pt").write_bytes(BODY)
    url, plain_open = "http://127.0.0.1:9/none", open

    def refuse(path: str | Path, mode: str = "r", *args: object, **options: object) -> IO[bytes]:
        if "r" in mode:
            return plain_open(path, mode, *args, **options)
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr("builtins.open", refuse)
    assert get(url, tmp_path / "there.pt") == tmp_path / "there.pt"
    with pytest.raises(UserError, match=r"cannot be written there \(Read-only file system\)\. Set UNMASKED_CACHE to"):
        get(url, tmp_path / "absent.pt")


def test_a_busy_server_is_asked_again_and_a_missing_file_is_not(server: str, tmp_path: Path) -> None:
    assert get(f"{server}/busy", tmp_path / "a").read_bytes() == BODY
    Handler.requests.clear()
    with pytest.raises(UserError, match="the server answered 404"):
        get(f"{server}/gone", tmp_path / "b")
    assert len(Handler.requests) == 1


def test_offline_names_file_address_and_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNMASKED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(FILES, "x.pt", RemoteFile("http://127.0.0.1:9/x.pt", "zutis/x.pt", "weights of x"))
    with pytest.raises(UserError) as caught:
        fetch("x.pt")
    text = str(caught.value)
    assert "weights of x: cannot be downloaded (" in text
    assert "http://127.0.0.1:9/x.pt" in text
    assert str(tmp_path / "cache" / "zutis" / "x.pt") in text


def test_unknown_names_get_the_nearest_match() -> None:
    with pytest.raises(UserError, match=r"'ViT-B16' is not in the list of downloads \(did you mean 'ViT-B/16'\?\)"):
        fetch("ViT-B16")


def test_clip_files_of_openai_s_cache_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("UNMASKED_CACHE", str(tmp_path / "cache"))
    path = tmp_path / ".cache" / "clip" / "tiny.pt"
    path.parent.mkdir(parents=True)
    path.write_bytes(BODY)
    monkeypatch.setitem(FILES, "tiny", RemoteFile("http://127.0.0.1:9/", "clip/tiny.pt", "tiny", sha256=DIGEST))
    assert fetch("tiny") == path


def _download_in_child(url: str, target: str) -> None:
    get(url, Path(target))


def test_two_processes_download_once(server: str, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    target = tmp_path / "file.bin"
    children = [context.Process(target=_download_in_child, args=(f"{server}/plain", str(target))) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(30)
        assert child.exitcode == 0
    assert target.read_bytes() == BODY
    assert len(Handler.requests) == 1


def test_the_table_is_sound() -> None:
    names = [file.file_name for file in FILES.values()]
    assert len(set(names)) == len(names)
    for name, file in FILES.items():
        assert file.url.startswith("https://"), name
        assert file.sha256 is None or (len(file.sha256) == 64 and file.sha256 in file.url)
    assert FILES["ViT-L/14@336px"].url.endswith("/ViT-L-14-336px.pt")
    assert FILES["selfmask_nq20.pt"].url.endswith("/selfmask/shared_files/selfmask_nq20.pt")


def test_the_list_also_names_what_is_to_be_got_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in (*FILES, *BY_HAND))
    assert "namedmask_<benchmark>.pt" in listed.split("By hand, from the authors' pages:")[1]
