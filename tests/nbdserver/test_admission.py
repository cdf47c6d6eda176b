"""For whom an export is: decided by socket, encryption and certificate, in every combination."""

from __future__ import annotations

import pytest

from nbdserver.admission import Credentials, TlsMode, refusal
from nbdserver.protocol import Reply

CLEAR = Credentials()
UNIX = Credentials(local=True)
NAMELESS = Credentials(encrypted=True)
ANN = Credentials(encrypted=True, names=("ann", "ann.example"))


@pytest.mark.parametrize("client", [CLEAR, UNIX, NAMELESS, ANN])
def test_export_without_a_list_is_for_everybody(client: Credentials) -> None:
    assert refusal(client, ()) is None


@pytest.mark.parametrize("allowed", [("ann",), ("bob", "ann.example")])
def test_any_name_of_the_certificate_will_do(allowed: tuple[str, ...]) -> None:
    assert refusal(ANN, allowed) is None


@pytest.mark.parametrize("allowed", [("bob",), ("an",), ("ANN",), ("ann.example.org",)])
def test_other_names_are_refused_by_policy_and_told_which_they_have(
    allowed: tuple[str, ...],
) -> None:
    refused = refusal(ANN, allowed)
    assert refused is not None
    assert refused.option_error is Reply.ERR_POLICY
    assert "ann, ann.example" in refused.message
    assert "bob" not in refused.message


def test_plaintext_client_is_told_that_tls_is_needed() -> None:
    refused = refusal(CLEAR, ("ann",))
    assert refused is not None
    assert refused.option_error is Reply.ERR_TLS_REQD


def test_encrypted_client_without_a_certificate_is_nobody() -> None:
    refused = refusal(NAMELESS, ("ann",))
    assert refused is not None
    assert refused.option_error is Reply.ERR_POLICY
    assert "nobody" in refused.message


def test_client_on_a_unix_socket_was_admitted_by_its_permissions() -> None:
    assert refusal(UNIX, ("ann",)) is None


def test_names_are_shown_without_what_breaks_a_line() -> None:
    assert Credentials(names=("a\nb", "ü")).shown == "a\\nb, \\xfc"


@pytest.mark.parametrize("mode", TlsMode)
def test_tls_is_never_demanded_on_a_unix_socket(mode: TlsMode) -> None:
    assert mode.towards(local=False) is mode
    assert mode.towards(local=True) is (TlsMode.OFF if mode is TlsMode.OFF else TlsMode.ALLOWED)
