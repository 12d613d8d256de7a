"""/v1/models: the one model that is served."""

from typing import Annotated, Any

from fastapi import APIRouter, Path

from app.routes.answers import refusals
from app.routes.openai import check_model
from app.sampling_defaults import chosen
from app.schemas.fields import OWN
from app.schemas.openai import OpenAIFields
from app.schemas.openai_answers import Model, ModelList
from app.services import CallerDep, Services, ServicesDep

Name = Annotated[str, Path(json_schema_extra={OWN: "name"})]

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
    return {
        "id": services.model_name,
        "object": "model",
        "created": services.started,
        "owned_by": "tickertape",
        "max_model_len": services.admission.context,
        "chat": services.admission.chat_template is not None,
        "sampling": chosen(OpenAIFields(), services.admission.defaults),
        "demo": services.settings.demo,
    }
