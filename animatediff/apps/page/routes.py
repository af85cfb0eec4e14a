"""What the page asks of the server, as JSON and files. Errors are {"error": one line} with status 400."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from animatediff.apps.forms import FormField, command_of, inputs_of, preparations, text_of, title_of, values_of, yaml_of
from animatediff.apps.page.desk import Desk, Ticket
from animatediff.apps.page.gallery import FILES
from animatediff.apps.page.house import House
from animatediff.apps.page.orders import ASKED_APART, offered, read_order
from animatediff.errors import UserError
from animatediff.files import check_object, parse_json
from animatediff.pipelines import METHODS

STATIC = Path(__file__).with_name("static")
LARGEST_BODY = 100_000  # bytes of a request in JSON
TYPES = {"gif": "image/gif", "sidecar": "application/json"}


def build(house: House) -> APIRouter:
    """Every route of the page."""
    router = APIRouter()
    served = {path.name: path for path in STATIC.iterdir() if path.suffix in (".css", ".js", ".svg")}

    @router.get("/")
    def page() -> FileResponse:
        return FileResponse(STATIC / "page.html", headers={"cache-control": "no-cache"})

    @router.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in served:
            return Response("there is nothing here", 404)
        return FileResponse(served[name], headers={"cache-control": "no-cache"})

    @router.get("/favicon.ico")
    def favicon() -> FileResponse:
        return FileResponse(STATIC / "icon.svg")

    @router.get("/page/start")
    async def start() -> Response:
        return await _json(lambda: starting(house))

    @router.post("/page/clips")
    async def upload(request: Request, name: str = "clip") -> Response:
        try:
            return JSONResponse((await house.clips.receive(name, request.stream())).told())
        except UserError as error:
            return _error(error)

    @router.get("/page/clips/{id}")
    async def clip(id: str) -> Response:
        return await _json(lambda: house.clips.get(id).told())

    @router.get("/page/clips/{id}/play")
    async def play(id: str) -> Response:
        return await _file(lambda: house.clips.play(id))

    @router.get("/page/clips/{id}/strip")
    async def strip(id: str) -> Response:
        try:
            return Response(await run_in_threadpool(house.clips.strip, id), media_type="image/jpeg", headers=KEPT)
        except UserError as error:
            return _error(error)

    @router.post("/page/jobs")
    async def submit(request: Request) -> Response:
        body = await _body(request)
        return await _json(lambda: _told(house.desk, house.submit(body(), request.scope["visitor"])))

    @router.post("/page/preparations")
    async def prepare(request: Request) -> Response:
        body = await _body(request)
        return await _json(lambda: _told(house.desk, house.submit_preparation(body(), request.scope["visitor"])))

    @router.get("/page/clips/{id}/views/{number}")
    async def view(id: str, number: int) -> Response:
        return await _file(lambda: house.clips.view(id, number))

    @router.post("/page/recipe")
    async def recipe(request: Request) -> Response:
        body = await _body(request)

        def told() -> dict[str, str]:
            values = body()
            order = read_order(values, house.presets, house.clips, house.options)
            preset = house.presets[values["preset"]]
            return {"command": command_of(preset, order.run), "yaml": yaml_of(preset, order.run)}

        return await _json(told)

    @router.get("/page/jobs/{id}")
    async def job(id: str) -> Response:
        return await _json(lambda: _told(house.desk, house.desk.get(id)) | house.result_of(id))

    @router.post("/page/jobs/{id}/cancel")
    async def cancel(id: str) -> Response:
        return await _json(lambda: _told(house.desk, house.desk.cancel(id)))

    @router.get("/page/jobs/{id}/preview")
    async def preview(id: str) -> Response:
        try:
            picture = house.desk.get(id).preview
        except UserError as error:
            return _error(error)
        return Response(picture, media_type="image/jpeg") if picture else Response(status_code=204)  # the job has ended

    @router.get("/page/results")
    async def results() -> Response:
        return await _json(lambda: [shown.told() for shown in house.gallery.all()])

    @router.get("/page/results/{id}")
    async def result(id: str) -> Response:
        def told() -> dict[str, Any]:
            shown = house.gallery.get(id)
            return shown.told() | house.gallery.recipe(shown)

        return await _json(told)

    @router.get("/page/results/{id}/measures")
    async def measures(id: str) -> Response:
        return await _json(lambda: house.gallery.measures(house.gallery.get(id)))

    @router.post("/page/results/{id}/again")
    async def again(id: str, request: Request) -> Response:
        body = await _body(request)

        def told() -> dict[str, Any]:
            seed = check_object(body(), "the request", {"seed": int}, required=["seed"])["seed"]
            order = house.gallery.repeat(house.gallery.get(id), seed)
            return _told(house.desk, house.desk.submit(order, request.scope["visitor"]))

        return await _json(told)

    @router.get("/page/results/{id}/{what}")
    async def file(id: str, what: str, download: bool = False) -> Response:
        if what not in FILES:
            return Response("there is nothing here", 404)
        shown = await run_in_threadpool(lambda: _found(lambda: house.gallery.get(id)))
        if isinstance(shown, UserError):
            return _error(shown)
        ending = {"gif": ".gif", "sidecar": ".json", "reference": "-reference.mp4"}.get(what, ".mp4")
        name = f"{shown.output.parent.name}-{shown.output.stem}{ending}" if download else None
        return await _file(lambda: house.gallery.file(shown, what), name, TYPES.get(what, "video/mp4"))

    return router


KEPT = {"cache-control": "private, max-age=3600"}


def starting(house: House) -> dict[str, Any]:
    """Everything that the page is made of: methods with their forms, presets, bundled clips, limits."""
    options = house.options
    return {
        "methods": [_method(name, house) for name in METHODS],
        "presets": [
            {
                "key": preset.key,
                "method": preset.method,
                "name": preset.name,
                "about": preset.about,
                "missing": list(preset.missing),
                "values": {key: _form_text(value) for key, value in values_of(preset.run).items()},
            }
            for preset in house.presets.values()
        ],
        "clips": [house.clips.get(id).told() for id in house.clips.bundled],
        "limits": {
            "megabytes": options.max_megabytes,
            "seconds": options.max_seconds,
            "side": options.max_side,
            "minutes": options.delete_after,
        },
        "prompts": house.prompts,
    }


def _method(name: str, house: House) -> dict[str, Any]:
    method = METHODS[name]
    preparation = preparations().get(name)
    open_keys = {field.key for field in offered(name)}
    fields = [field for field in offered(name) if field.key not in ASKED_APART]
    return {
        "name": name,
        "title": title_of(method),
        "needs_prompt": "prompt" in open_keys,
        "can_trim": {"start", "duration"} <= open_keys,
        "inputs": [vars(given) for given in inputs_of(name) if given.kind != "folder"],
        "preparation": None
        if preparation is None
        else {
            "key": preparation.key,
            "clips": [vars(given) for given in preparation.clips],
            "examples": [
                house.clips.get(id).told() for id, (_, of) in house.clips.examples.items() if of is preparation
            ],
        },
        "fields": [_field(field) for field in fields],
    }


def _field(field: FormField) -> dict[str, Any]:
    return {
        name: getattr(field, name)
        for name in ("key", "name", "kind", "help", "place", "least", "most", "choices", "of", "optional")
    } | {"default": _form_text(field.default)}


def _form_text(value: Any) -> str:
    return text_of(value)


def _told(desk: Desk, ticket: Ticket) -> dict[str, Any]:
    """How a job stands."""
    left = ticket.seconds_left
    return {
        "id": ticket.id,
        "state": ticket.state,
        "stage": ticket.stage,
        "step": ticket.step,
        "steps": ticket.steps,
        "left": None if left is None else round(left, 1),
        "place": desk.place(ticket),
        "note": ticket.note,
        "previews": ticket.previews,
        "prepared": ticket.prepared,
    }


async def _body(request: Request) -> Callable[[], dict[str, Any]]:
    """What reads the request's JSON, once the whole of it is here."""
    taken = b""
    async for chunk in request.stream():
        taken += chunk
        if len(taken) > LARGEST_BODY:
            break

    def read() -> dict[str, Any]:
        if len(taken) > LARGEST_BODY:
            raise UserError(f"a request of more than {LARGEST_BODY} bytes is refused; send less")
        try:
            return check_object(parse_json(taken.decode("utf-8"), "the request"), "the request")
        except UnicodeDecodeError as error:
            raise UserError("the request is not UTF-8 text") from error

    return read


async def _json(told: Callable[[], Any]) -> Response:
    found = await run_in_threadpool(lambda: _found(told))
    return _error(found) if isinstance(found, UserError) else JSONResponse(found)


async def _file(path: Callable[[], Path], name: str | None = None, kind: str = "video/mp4") -> Response:
    found = await run_in_threadpool(lambda: _found(path))
    if isinstance(found, UserError):
        return _error(found)
    return FileResponse(found, media_type=kind, filename=name, headers={"cache-control": "private, no-cache"})


def _found(told: Callable[[], Any]) -> Any:
    try:
        return told()
    except UserError as error:
        return error


def _error(error: UserError) -> Response:
    return JSONResponse({"error": str(error)}, 400)
