"""Mail through one SMTP server: `MILLRACE_ANNOUNCE_MAIL_*` and `MILLRACE_ANNOUNCE_SMTP_*`.

Reads the settings; sends one message to each receiver, so that one refused address costs the others nothing. With STARTTLS
(the default) the server's certificate is verified; a password is never sent without it. Fails with `ServiceUnavailable`
when the server is away or says "later" (4xx), with `SettingsError` when it says no or settings are missing.
"""

import smtplib
import ssl
from dataclasses import dataclass
from email.message import EmailMessage

from tasks.errors import ServiceUnavailable, SettingsError
from tasks.settings import Settings

_SECONDS = 20


@dataclass(frozen=True)
class Mailbox:
    """A server, and who writes to whom."""

    host: str
    port: int
    starttls: bool
    user: str | None
    password: str | None
    sender: str
    to: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Mailbox({self.host}:{self.port})"  # never the password

    def send(self, address: str, subject: str, text: str, key: str) -> None:
        """Send one message. Raises ServiceUnavailable or SettingsError."""
        message = EmailMessage()
        message["Subject"], message["From"], message["To"] = subject, self.sender, address
        message["Message-ID"] = f"<{key}@millrace.invalid>"  # the same at each retry: readers drop the double
        message.set_content(text, cte="quoted-printable")  # a server need not take 8 bits
        try:
            with smtplib.SMTP(self.host, self.port, timeout=_SECONDS) as server:
                if self.starttls:
                    server.starttls(context=ssl.create_default_context())
                if self.user and self.password:
                    server.login(self.user, self.password)
                server.send_message(message, self.sender, [address])
        except smtplib.SMTPRecipientsRefused as error:
            raise _refused(error.recipients[address][0]) from None
        except smtplib.SMTPResponseException as error:
            raise _refused(error.smtp_code) from None
        except (smtplib.SMTPNotSupportedError, ssl.SSLError) as error:
            raise SettingsError(
                f"expected STARTTLS with a certificate that can be verified, and a way to sign in, found "
                f"{type(error).__name__}. Next: correct MILLRACE_ANNOUNCE_SMTP_*."
            ) from None
        except (smtplib.SMTPException, OSError) as error:
            raise ServiceUnavailable(
                f"expected the mail server to answer, found {type(error).__name__}. Next: retry."
            ) from None


def mailbox(settings: Settings) -> Mailbox | None:
    """Return where mail goes, or None where nobody is named. Raises SettingsError where half of it is missing."""
    if settings.announce_mail_to is None:
        return None
    to = tuple(address.strip() for address in settings.announce_mail_to.split(","))
    password = settings.announce_smtp_password
    needed = {
        "MILLRACE_ANNOUNCE_SMTP_HOST": settings.announce_smtp_host,
        "MILLRACE_ANNOUNCE_MAIL_FROM": settings.announce_mail_from,
        "MILLRACE_ANNOUNCE_MAIL_TO": all("@" in address for address in to),
    }
    if missing := [name for name, value in needed.items() if not value]:
        raise SettingsError(f"expected a mail server and addresses, found no {', '.join(missing)}. Next: set them.")
    if (settings.announce_smtp_user is None) != (password is None):
        raise SettingsError("expected a user and a password of the mail server, found one of both. Next: set both.")
    starttls = settings.announce_smtp_starttls == "yes"
    if password is not None and not starttls:
        raise SettingsError(
            "expected MILLRACE_ANNOUNCE_SMTP_STARTTLS=yes with a password, found no. Next: let it be encrypted."
        )
    return Mailbox(
        host=str(settings.announce_smtp_host),
        port=settings.announce_smtp_port,
        starttls=starttls,
        user=settings.announce_smtp_user,
        password=password.get_secret_value() if password else None,
        sender=str(settings.announce_mail_from),
        to=to,
    )


def _refused(code: int) -> ServiceUnavailable | SettingsError:
    if 400 <= code < 500:
        return ServiceUnavailable(f"expected the mail server to take the note, found {code}. Next: retry.")
    return SettingsError(
        f"expected the mail server to take the note, found {code}. Next: correct MILLRACE_ANNOUNCE_MAIL_* or _SMTP_*."
    )
