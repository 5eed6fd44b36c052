"""Django's development server (`runserver`) with its threads, from a pool; asked for a page of a project."""

from typing import Any

import django
from django.conf import settings
from django.core.servers.basehttp import ThreadedWSGIServer, WSGIRequestHandler
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse
from django.urls import path

from prefork import PreForkingMixIn

from .http_questions import request


def page(request: HttpRequest) -> HttpResponse:
    return HttpResponse(f"a page of django {django.__version__}")


urlpatterns = [path("page", page)]


class Server(PreForkingMixIn, ThreadedWSGIServer):
    pass


def server(address: tuple[str, int]) -> Any:
    settings.configure(ROOT_URLCONF=__name__, SECRET_KEY="none", ALLOWED_HOSTS=["*"])
    made = Server(address, WSGIRequestHandler)
    made.set_app(get_wsgi_application())
    return made


def ask(host: str, port: int) -> None:
    assert request(host, port, "GET", "/page") == (200, f"a page of django {django.__version__}".encode())
