"""The module `openapi`: the API of this server as a document for programs and as a page for people."""

from collections.abc import Mapping

from app.api.operation import Resource
from app.lifecycle.contract import Module, ModuleContext
from modules.openapi.routes import DocumentResource, HomeResource, PageResource


class OpenApi(Module):
    """GET /openapi.json, GET /docs and the way there from `/`."""

    name = "openapi"

    def routes(self, context: ModuleContext) -> Mapping[str, Resource]:
        """Return both routes; what they answer is made at the first request."""
        document = DocumentResource(context)
        return {"/openapi.json": document, "/docs": PageResource(context, document), "/": HomeResource(context)}


module = OpenApi()
