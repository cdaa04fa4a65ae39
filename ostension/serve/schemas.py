"""Requests and answers as the OpenAPI document describes them.

Unknown fields and wrong types are refused. Lengths that depend on the settings are checked where the request is carried out;
what is here holds for every service. A text is a text and a picture is an object: what a string looks like never decides.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MODEL = "Name of the model, as `GET /v1/models` gives it; may be left out."
IMAGE = "A data URI, or the plain base64 of the file's bytes; an http(s) address only where the service allows its host."


class Strict(BaseModel):
    """No unknown fields, no conversions: `"3"` is no number."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True, protected_namespaces=())


class TextItem(Strict):
    """A text."""

    text: str


class ImageItem(Strict):
    """A picture."""

    image: Annotated[str, Field(description=IMAGE)]


Item = str | TextItem | ImageItem
ImageInput = str | ImageItem
# The first thing that is wrong is told; looking for more of it in a list of a hundred thousand would take seconds.
Items = Annotated[list[Item], Field(fail_fast=True)]
Images = Annotated[list[ImageInput], Field(fail_fast=True)]
Texts = Annotated[list[str], Field(fail_fast=True)]
Numbers = Annotated[list[float], Field(fail_fast=True)]


class EmbeddingRequest(Strict):
    """Texts and pictures to embed, in OpenAI's form; pictures as objects (Jina's form) or with `modality` (infinity's)."""

    input: Annotated[str | Items, Field(description='A text, or a list of texts, `{"text": ...}` and `{"image": ...}`.')]
    model: Annotated[str | None, Field(description=MODEL)] = None
    encoding_format: Annotated[
        Literal["float", "base64"], Field(description="`base64`: little-endian float32, a third of the bytes.")
    ] = "float"
    embedding_type: Annotated[Literal["float", "base64"] | None, Field(description="Another name of `encoding_format`.")] = None
    dimensions: Annotated[int | None, Field(description="Only the model's own number of dimensions.")] = None
    modality: Annotated[
        Literal["text", "image"], Field(description="What strings in `input` are; objects say it themselves.")
    ] = "text"
    normalized: Annotated[Literal[True] | None, Field(description="Embeddings have unit length, always.")] = None
    truncate: Annotated[bool, Field(description="Cut texts of too many tokens, which are refused otherwise.")] = False
    user: Annotated[str | None, Field(description="Accepted and not used.")] = None

    @model_validator(mode="after")
    def _one_encoding(self) -> EmbeddingRequest:
        if self.embedding_type is not None:
            if "encoding_format" in self.model_fields_set and self.encoding_format != self.embedding_type:
                raise ValueError("encoding_format and embedding_type say different things")
            self.encoding_format = self.embedding_type
        return self


class Embedding(Strict):
    """One row, unit length."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Usage(Strict):
    """What the request cost; a picture counts no tokens."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingResponse(Strict):
    """One row for each input, in order."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    sha256: Annotated[str | None, Field(description="The model's, as in its card. Different models' rows do not compare.")]
    usage: Usage


class ClassifyRequest(Strict):
    """Pictures, and classes in exactly one of three ways: `labels`, a named `label_set`, or a saved `predictor`."""

    images: Annotated[Images, Field(min_length=1)]
    labels: Annotated[Texts | None, Field(description="Class names, each different.")] = None
    label_set: Annotated[str | None, Field(description="A published set of class names, such as `imagenet`.")] = None
    predictor: Annotated[str | None, Field(description="A saved predictor, by the name that `GET /v1/models` gives.")] = None
    templates: Annotated[
        str | Texts | None,
        Field(description="Templates with one `{}`, one of them, or the name of a set. Default: `a photo of a {}.`"),
    ] = None
    top_k: Annotated[int, Field(ge=1, description="The most probable classes that are answered.")] = 5
    model: Annotated[str | None, Field(description=MODEL)] = None


class ClassProbability(Strict):
    """A class and its probability."""

    label: str
    probability: float


class Classification(Strict):
    """The classes of one picture, the most probable first."""

    object: Literal["classification"] = "classification"
    index: int
    predictions: list[ClassProbability]


class ClassifyResponse(Strict):
    """One classification for each picture, in order."""

    object: Literal["list"] = "list"
    data: list[Classification]
    model: str
    num_labels: int


class SimilarityRequest(Strict):
    """Pictures and texts to compare, each with each."""

    images: Annotated[Images, Field(min_length=1)]
    texts: Annotated[Texts, Field(min_length=1)]
    model: Annotated[str | None, Field(description=MODEL)] = None
    truncate: bool = False


class SimilarityResponse(Strict):
    """Cosines: a row for each picture, a column for each text. Logits are `logit_scale * cosine + logit_bias`."""

    object: Literal["similarity"] = "similarity"
    similarity: list[list[float]]
    logit_scale: float
    logit_bias: float | None
    model: str


class Query(Strict):
    """What to look for, in exactly one way."""

    text: str | None = None
    image: Annotated[str | None, Field(description=IMAGE)] = None
    id: Annotated[str | None, Field(description="The id of a row whose neighbours are wanted.")] = None
    vector: Numbers | None = None
    expression: Annotated[str | None, Field(description="Words with signs, such as `sunset - people + boat`.")] = None

    @model_validator(mode="after")
    def _one(self) -> Query:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"the query is given by {' and '.join(given) or 'nothing'}; expected exactly one way")
        return self


class SearchRequest(Strict):
    """A search in a collection."""

    query: Query
    collection: str = "default"
    k: Annotated[int, Field(ge=0, description="The most hits that are answered.")] = 10
    where: Annotated[
        str | dict[str, Any] | None,
        Field(description='Only rows with these fields: `label = cat and width >= 640`, or `{"field": value}`.'),
    ] = None
    vectors: Annotated[bool, Field(description="Answer the query's vector and the hits' as well.")] = False
    model: Annotated[str | None, Field(description=MODEL)] = None


class SearchHit(Strict):
    """A row that was found."""

    id: str
    score: float
    fields: dict[str, Any]
    vector: list[float] | None = None


class SearchResponse(Strict):
    """The hits, best first."""

    object: Literal["list"] = "list"
    data: list[SearchHit]
    vector: list[float] | None
    collection: str
    model: str


class AuditRequest(Strict):
    """Class names to audit before they are used."""

    labels: Annotated[Texts, Field(min_length=2)]
    templates: Annotated[str | Texts | None, Field(description="As for `/v1/classify`.")] = None
    model: Annotated[str | None, Field(description=MODEL)] = None


class AuditResponse(Strict):
    """The findings, the most important first."""

    object: Literal["audit"] = "audit"
    verdict: str
    findings: list[dict[str, Any]]
    skipped: list[str]
    neighbours: Annotated[
        dict[str, list[list[Any]]], Field(description="The nearest classes of each, with their relative distance.")
    ]
    model: str


class PredictorCard(Strict):
    """A saved predictor that the service has."""

    name: str
    kind: str
    class_names: list[str]
    templates: list[str]


class ModelCard(Strict):
    """The model, what clients have to know of it, and what they may ask of it."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    sha256: str | None
    embed_dim: int
    context_length: int
    image_size: int
    normalized: Literal[True] = True
    logit_scale: float | None
    logit_bias: float | None
    dtype: str | None
    engine: str
    limits: dict[str, int | float]
    template_sets: list[str]
    label_sets: list[str]
    predictors: list[PredictorCard]
    architecture: dict[str, Any]
    provenance: dict[str, Any]
    url_hosts: list[str]


class ModelList(Strict):
    """The one model of the service."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class CollectionCard(Strict):
    """A collection that can be searched."""

    name: str
    object: Literal["collection"] = "collection"
    rows: int
    embed_dim: int
    columns: list[str]
    sha256: Annotated[str, Field(description="Of the model that made the rows; another one cannot search them.")]
    previews: bool


class CollectionList(Strict):
    """The collections of the store."""

    object: Literal["list"] = "list"
    data: list[CollectionCard]


class Health(Strict):
    """Whether the service works, and since when."""

    status: str
    reason: str | None = None


class ErrorBody(Strict):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(Strict):
    """Every failure is answered in this form."""

    error: ErrorBody
