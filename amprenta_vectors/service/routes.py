"""The endpoints under ``/api/v1``: each is one call to the models system."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Path, Query, Request
from fastapi.security import HTTPBearer

from amprenta_vectors.service.api import EmbeddingStatus, ModelsService
from amprenta_vectors.service.bodies import EmbeddingsResponse, ModelsResponse, Name, SearchRequest, SearchResponse
from amprenta_vectors.service.problems import MEDIA_TYPE, Problem

STATUSES = {
    400: "the body is not JSON",
    401: "no valid bearer token",
    404: "no such document",
    408: "the body did not arrive in time",
    413: "the body is too large",
    415: "the body is of another type than JSON",
    422: "a value is out of its limits, or the model is not registered",
    500: "a fault of the service, its settings or its database",
    503: "the database or an embedding service is away, or too many requests are handled: wait for `Retry-After`",
    504: "the request took too long and was given up",
}


def _problems(*statuses: int) -> dict[int | str, dict[str, object]]:
    content = {MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{Problem.__name__}"}}}
    return {status: {"description": STATUSES[status], "content": content} for status in statuses}


def _service(request: Request) -> ModelsService:
    service: ModelsService = request.app.state.service
    return service


Service = Annotated[ModelsService, Depends(_service)]
DocumentId = Annotated[Name, Path(description="the id of a document")]
Model = Annotated[Name | None, Query(description="the name of a registered model; the current one if it is left out")]

# Tokens are verified before a request comes here; this one only tells OpenAPI of them.
router = APIRouter(
    prefix="/api/v1",
    dependencies=[Depends(HTTPBearer(auto_error=False, scheme_name="bearer", bearerFormat="JWT"))],
    responses=_problems(401, 500, 503, 504),
)


@router.get("/models/search", summary="List the models that can be searched")
async def list_models(service: Service) -> ModelsResponse:
    """Return every registered model, and which of them is searched where none is named."""
    return ModelsResponse(models=await service.models_for_search())


@router.get(
    "/documents/{document_id}/embeddings", summary="Show a document's embeddings", responses=_problems(404, 422)
)
async def document_embeddings(document_id: DocumentId, service: Service) -> EmbeddingsResponse:
    """Return for each model how many chunks the document has, and how many of them are embedded."""
    found = await service.document_embeddings(document_id)
    if found is None:
        raise HTTPException(404, "there is no such document")
    return EmbeddingsResponse(document_id=document_id, embeddings=found)


@router.put("/documents/{document_id}/embeddings", summary="Embed a document by a model", responses=_problems(404, 422))
async def update_document_embeddings(document_id: DocumentId, service: Service, model: Model = None) -> EmbeddingStatus:
    """Embed every chunk of the document by `model`; repeated, it embeds them again and changes nothing else."""
    status = await service.update_document_embeddings(document_id, model)
    if status is None:
        raise HTTPException(404, "there is no such document")
    return status


@router.post("/search", summary="Search by a text", responses=_problems(400, 408, 413, 415, 422))
async def search(wanted: SearchRequest, service: Service) -> SearchResponse:
    """Return the chunks nearest to `query`. Scores of one model do not compare with those of another."""
    if wanted.models is None:
        answer = await service.search(wanted.query, wanted.model, wanted.top_k)
        return SearchResponse(models=[answer.model], results=answer.results)
    aggregation = wanted.aggregation or "union"
    found = await service.search_multi_model(wanted.query, wanted.models, aggregation, wanted.top_k)
    return SearchResponse(models=wanted.models, results=found)
