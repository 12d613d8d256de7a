"""/v1/models: the one model that is served."""

from typing import Annotated, Any

from fastapi import APIRouter, Path

from app.api.documented_responses import refusals
from app.api.openai.answers import Model, ModelList
from app.api.openai.route import check_model
from app.api.openai.types import OpenAIFields
from app.api.validation import MODEL_LIMIT
from app.sampling_defaults import chosen
from app.services import CallerDep, Services, ServicesDep

Name = Annotated[str, Path(json_schema_extra={MODEL_LIMIT: "name"})]

router = APIRouter(prefix="/v1/models", tags=["openai"])


@router.get("", response_model=ModelList, operation_id="list_models")
async def models(services: ServicesDep, caller: CallerDep) -> Any:
    """A list of one."""
    return {"object": "list", "data": [_model(services)]}


@router.get(
    "/{model:path}", response_model=Model, operation_id="retrieve_model", responses=refusals(404)
)
async def model(model: Name, services: ServicesDep, caller: CallerDep) -> Any:
    """The model by its name, which may have slashes."""
    check_model(services, model)
    return _model(services)


def _model(services: Services) -> dict[str, Any]:
    unset = OpenAIFields().request([], None)
    return {
        "id": services.model_name,
        "object": "model",
        "created": services.started,
        "owned_by": "tickertape",
        "max_model_len": services.admission.context,
        "chat": services.admission.chat_template is not None,
        "sampling": chosen(unset.params, unset.given, services.admission.defaults),
        "demo": services.settings.demo,
    }
