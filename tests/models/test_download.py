import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from virnucpro_pl.errors import WeightsError
from virnucpro_pl.models.download import download, hash_files, recorded_hash

CONTENT = bytes(range(256)) * 9000  # 2.3 MB: more than one read
SHA256_OF_ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.fixture
def server():
    """A web server: `/whole.pt` is there, `/short.pt` breaks off, all else is missing."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path not in ("/whole.pt", "/short.pt"):
                return self.send_error(404)
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            sent = CONTENT if self.path == "/whole.pt" else CONTENT[:-1]
            return self.wfile.write(sent)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_download_is_whole_and_its_hash_beside_it(server, tmp_path):
    path = tmp_path / "checkpoints" / "whole.pt"
    download(f"{server}/whole.pt", path)
    assert path.read_bytes() == CONTENT
    recorded = (path.parent / "whole.pt.sha256").read_text()
    assert recorded == f"{hash_files([path]).result()}  whole.pt\n"
    assert len(list(path.parent.iterdir())) == 2


@pytest.mark.parametrize(
    ("name", "why"),
    [("short.pt", "broke off after 2303999 of 2304000 bytes"), ("absent.pt", "404")],
)
def test_download_that_fails_leaves_nothing(server, tmp_path, name, why):
    with pytest.raises(WeightsError, match=why):
        download(f"{server}/{name}", tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_download_without_network_says_what_to_do(tmp_path, free_port):
    url, path = f"http://127.0.0.1:{free_port()}/esm2.pt", tmp_path / "checkpoints" / "esm2.pt"
    with pytest.raises(WeightsError) as caught:
        download(url, path)
    for part in (url, str(path), "random"):
        assert part in str(caught.value)
    assert not path.exists()


def test_file_that_changed_since_its_download_is_refused(server, tmp_path):
    path = tmp_path / "whole.pt"
    download(f"{server}/whole.pt", path)
    path.write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(WeightsError, match=r"whole\.pt is not what was downloaded"):
        hash_files([path]).result()


def test_blob_of_the_hugging_face_cache_must_be_what_its_name_says(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to(blobs / SHA256_OF_ABC)
    (blobs / SHA256_OF_ABC).write_bytes(b"abc")
    assert hash_files([snapshot / "model.safetensors"]).result() == SHA256_OF_ABC
    (blobs / SHA256_OF_ABC).write_bytes(b"abd")
    with pytest.raises(WeightsError, match="not what was downloaded"):
        hash_files([snapshot / "model.safetensors"]).result()


def test_recorded_hash_is_that_of_all_files_where_no_large_one_is_read(server, tmp_path):
    large, small = tmp_path / "whole.pt", tmp_path / "config.json"
    download(f"{server}/whole.pt", large)
    small.write_bytes(b"abc")
    for files in ([large], [small], [small, large]):
        assert recorded_hash(files) == hash_files(files).result()
    (tmp_path / "whole.pt.sha256").unlink()
    assert recorded_hash([small, large]) is None
    assert recorded_hash([tmp_path / "absent"]) is None
    (tmp_path / "config.json.sha256").write_text("no sum")
    assert recorded_hash([small]) == SHA256_OF_ABC


def test_hash_one_file_is_its_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert hash_files([tmp_path / "a"]).result() == SHA256_OF_ABC


def test_hash_folder_depends_on_each_file(tmp_path):
    hashes = set()
    for contents in (b"ab", b"ba", b"bb"):
        files = [tmp_path / "0", tmp_path / "1"]
        for file, byte in zip(files, contents, strict=True):
            file.write_bytes(bytes([byte]))
        hashes.add(hash_files(files).result())
    assert len(hashes) == 3


@pytest.mark.parametrize(
    "beside", [b"", b"SHA256 (a) = 00\n", b"\xff\xfe", b"0" * 63 + b"  a\n"],
    ids=["empty", "as BSD writes it", "no text", "too short"],
)  # fmt: skip
def test_record_that_is_none_is_not_checked_and_said_so(tmp_path, caplog, beside):
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "a.sha256").write_bytes(beside)
    assert hash_files([tmp_path / "a"]).result(10) == SHA256_OF_ABC
    assert "a is not checked" in caplog.text


def test_hash_of_a_file_that_is_gone_is_an_error_for_whoever_waits(tmp_path):
    with pytest.raises(FileNotFoundError):
        hash_files([tmp_path / "absent"]).result(10)


def test_download_to_a_folder_that_cannot_be_made_says_what_to_do(server):
    with pytest.raises(WeightsError, match="put it at"):
        download(f"{server}/whole.pt", Path("/proc/nothing/whole.pt"))
