/** Codes of the HTTP API that are written in lower case, as OpenAI writes its own. */
import { defineArea } from "./define-area.ts";

export const httpCodes = defineArea(
  {
    title: "The HTTP API (OpenAI's way of writing)",
    where: "an answer of the HTTP API",
    sources: "services/gateway, packages/cli",
    audience: "user",
  },
  {
    not_found: [
      "There is no object with this id, or it belongs to another tenant.",
      "Check the id; the list of the same kind of objects shows those you have.",
    ],
    invalid_api_key: ["The API key or token is missing, wrong or revoked.", "Send a valid key as `Authorization: Bearer KEY`."],
    api_key_expired: ["The API key has expired.", "Have a new one made: `loraline keys create`."],
    model_not_allowed: [
      "The key is bound to some models, and the request names another one or a route that such keys may not use.",
      "Ask for one of the models that the message names, or use another key.",
    ],
    session_ended: ["The browser's session has ended, or was ended.", "Sign in again."],
    too_many_pages: [
      "As many pages of the console as one tenant may have open at one gateway follow changes already.",
      "Close some that are not looked at.",
    ],
    link_used: ["The link to sign in was used already, or is older than a quarter of an hour.", "Make another one: `loraline console`."],
    link_needs_key: [
      "A link to sign in is made of an API key, and the request has none.",
      "Send an API key as `Authorization: Bearer KEY`.",
    ],
    sign_in_refused: [
      "The issuer did not let you in, or gave no token for this server.",
      "Try again, or ask whoever runs the issuer whether you may use this server.",
    ],
    sign_in_expired: ["Signing in took longer than ten minutes, or was begun in another browser.", "Sign in again, in one window."],
    sign_in_not_offered: [
      "The server has no issuer at which people sign in to the console.",
      "Sign in with an API key, or set OIDC_CLIENT_ID.",
      "operator",
    ],
    origin_refused: [
      "The request came from a page of another address than this server's own, with the cookie of a session.",
      "Use the console at the server's own address; other pages and programs send an API key.",
    ],
    stream_only: [
      "This route answers with server-sent events only, and the request does not accept them.",
      "Send `Accept: text/event-stream`.",
    ],
    console_missing: [
      "The server has no console: its files were not built.",
      "Run `make setup`, or build the image with its own Dockerfile.",
      "operator",
    ],
    insufficient_scope: [
      "The key does not have the scope that this request needs.",
      "Use another key, or have one made with the scope that the message names.",
    ],
    tenant_missing: [
      "The token of the OpenID issuer names no tenant.",
      "Have the issuer set the claim that the message names.",
      "operator",
    ],
    issuer_unreachable: [
      "The OpenID issuer does not answer, so tokens cannot be checked now.",
      "Try again; if it lasts, look at the issuer.",
      "operator",
    ],
    rate_limit_exceeded: [
      "Your tenant or this adapter has used up its limit of requests, tokens or parallel requests.",
      "Try again after the seconds in the header Retry-After.",
    ],
    request_exceeds_limit: [
      "The request may use more tokens than the limit per minute, so it can never be admitted.",
      "Set a lower max_tokens, or shorten the prompt.",
    ],
    limit_fixed: ["This limit was set by the operator and cannot be changed through the API.", "Ask the operator to change it."],
    quota_above_granted: [
      "A quota is higher than what the operator grants this tenant.",
      "Give at most the number that the message names, or ask the operator for more.",
    ],
    invalid_adapter: ["The value is not a valid adapter name.", "Use 1 to 63 lowercase letters, digits and dashes."],
    invalid_day: ["A value is not a day, or the range ends before it begins.", "Write days as YYYY-MM-DD, the earlier one in `from`."],
    too_many_days: ["The range has more days than one request can ask for.", "Ask for it in several requests."],
    expires_in_the_past: ["`expires_at` is a time in the past.", "Give a time in the future, or leave it out."],
    expires_too_late: [
      "`expires_at` is later than the key may live: the installation has a longest lifetime, and no key outlives the one that made it.",
      "Give a time up to the one that the message names, or leave it out for that time.",
    ],
    bound_admin: [
      "The key to be made is bound to models and has the scope `admin`, with which it could make itself another key.",
      "Give `scopes` without `admin`, or no `models`.",
    ],
    model_not_found: ["There is no such model, or the key may not use it.", "List the models with GET /v1/models."],
    model_not_ready: ["The model exists, but no replica can answer for it now.", "Try again after the seconds in the header Retry-After."],
    missing_model: ["The request names no model.", "Set `model`."],
    invalid_type: ["A field of the request has a value of the wrong type.", "Correct the field that the message names."],
    unsupported_task: [
      "The model's engine does not offer this kind of request, such as embeddings.",
      "Use another model, or have the operator start an engine for it.",
    ],
    tools_unsupported: [
      "The request has tools, and the model's engine has no parser that would find calls of them in its answers.",
      "Remove tools, use a base whose chat template has tools, or have the operator set `toolCallParser` of the engine (`loraline up --tool-call-parser`).",
    ],
    pictures_unsupported: [
      "The request has pictures, and the model's base takes none.",
      "Ask with text only, or use a model whose `modalities` in `GET /v1/models` have `image`.",
    ],
    picture_refused: [
      "A picture is not a data URL of a PNG, JPEG, WebP or GIF, or there are more than a request may have.",
      "Send the picture itself (`data:image/png;base64,…`): it is fetched from nowhere. The message says how many a request may have.",
    ],
    response_not_cancellable: [
      "Only responses that are made in the background can be cancelled, and none are here.",
      "Close the connection to stop a response that is being answered.",
    ],
    previous_response_not_found: [
      "`previous_response_id` names no response of your tenant that is kept: it was made with `store: false`, deleted, or is older than three days.",
      "Send the conversation's items in `input`.",
    ],
    server_error: ["A response failed while the engine answered; the event `response.failed` says why.", "Ask again."],
    item_not_found: [
      "An `item_reference` names no item of a response that is kept.",
      "Send the item itself in `input`, or make responses with `store: true`.",
    ],
    too_many_items: [
      "A list of the request is too long, or `input` refers to more stored responses, or to more bytes of them, than one request may.",
      "Send fewer items, or the items themselves instead of references.",
    ],
    field_too_large: [
      "A field that each response repeats is too large.",
      "Make `instructions` or `tools` shorter; what is long goes into `input`.",
    ],
    response_too_large: [
      "The conversation is too large to be kept.",
      "Set `store: false` and send the items in `input`, or begin another conversation.",
    ],
    unsupported: [
      "The request asks for something that OpenAI's API has and this server does not.",
      "Remove what the message names; it says what to do instead.",
    ],
    engine_timeout: ["The engine did not answer within the time that the gateway waits.", "Ask for fewer tokens, or try again."],
    client_closed_request: ["The client closed the connection before the answer was complete.", "Nothing has to be done."],
    shutting_down: ["This gateway is shutting down.", "Try again: another one answers, or it is back soon."],
    audit_unavailable: [
      "The audit log cannot be written, and what cannot be recorded is not done.",
      "Try again; if it lasts, look at NATS.",
      "operator",
    ],
    bus_unavailable: ["NATS does not answer.", "Try again; nothing is lost.", "operator"],
    internal_error: [
      "The gateway failed on this request in a way it does not expect.",
      "Look for the request's id in the gateway's log, and report it.",
      "operator",
    ],
    invalid_json: ["The body is not valid JSON.", "Correct the JSON as the message says."],
    invalid_body: [
      "The body is not a JSON object, or a field of it is unknown, missing or has a wrong value.",
      "Correct the field that the message names.",
    ],
    body_too_large: ["The JSON body has more bytes or more values than the gateway accepts.", "Send less in one request."],
    unsupported_media_type: [
      "The body's Content-Type is not one that this route reads.",
      "Send application/json, or multipart/form-data where docs/openapi.json says so.",
    ],
    invalid_limit: ["`limit` is not a whole number in the allowed range.", "Use a number from the range that the message names."],
    invalid_cursor: ["`after` is not the id of an item in this list.", "Use the last id of the page before."],
    invalid_query: ["A field of the query has a value that it cannot have.", "Use one of the values that the message names."],
    invalid_order: ["`order` is neither asc nor desc.", "Use `asc` or `desc`."],
    invalid_idempotency_key: ["The Idempotency-Key is empty or too long.", "Use 1 to 255 characters."],
    idempotency_key_reused: [
      "The same Idempotency-Key was sent with a different request before.",
      "Use a new key for each different request.",
    ],
    invalid_content_type: ["The upload's Content-Type is not multipart/form-data.", "Send the file as multipart/form-data."],
    invalid_multipart: [
      "The form data of the upload is broken.",
      "Send it again; if it fails again, look at the program that builds the form.",
    ],
    invalid_training_file: [
      "The training file does not exist, or its dataset was rejected.",
      "Upload it first, or correct what the message says.",
    ],
    invalid_validation_file: [
      "The validation file does not exist, or its dataset was rejected.",
      "Upload it first, or correct what the message says.",
    ],
    invalid_purpose: ["`purpose` is missing, or is another one than fine-tune.", "Send purpose=fine-tune."],
    invalid_mapping: [
      "The mapping is not valid JSON, has a wrong field, or was sent in several form fields.",
      "Send the whole mapping as JSON text in the field `mapping`; docs/formats.md lists its fields.",
    ],
    invalid_settings: ["The form field `settings` is not valid JSON.", "Send JSON text with at least `base` and `name`."],
    missing_settings: ["The form has no field `settings`.", "Send JSON text with at least `base` and `name` in it."],
    missing_file: ["The upload has no file.", "Send the file in the form field `file`."],
    empty_file: ["The file is empty.", "Send at least one training example."],
    file_too_large: ["The file is larger than the gateway accepts.", "Split it, or have the operator raise the gateway's upload limit."],
    too_many_uploads: [
      "As many uploads as one gateway takes at once are under way.",
      "Try again after the seconds in the header Retry-After.",
    ],
    too_many_downloads: [
      "As many files as one tenant may download at once from one gateway are being downloaded: 64.",
      "Try again after the seconds in the header Retry-After; download fewer at once, and close what is not read.",
    ],
    too_many_bodies: [
      "The JSON bodies of requests that are under way at this gateway are more than it keeps in memory: of one tenant 64 MiB, or twice what one body may have.",
      "Try again after the seconds in the header Retry-After; send fewer large requests at once.",
    ],
    request_too_slow: [
      "The body comes too slowly: at less than 4 KiB a second after the first minute, or, where another tenant needs an upload's place, at less than 64 KiB a second after half a minute.",
      "Send it faster, or in smaller requests.",
    ],
    QUOTA_UPLOAD_RATE: [
      "The tenant has uploaded as many bytes as it may in one minute, or the upload alone has more.",
      "Try again after the seconds in the header Retry-After; without that header split the upload, or have the operator raise the quota uploadBytesPerMinute.",
    ],
    files_deleted_meanwhile: ["The adapter's files were deleted while they were being sent.", "Send them again."],
    adapter_in_training: [
      "A run that trains this adapter has not ended, so the adapter cannot be deleted.",
      "Cancel the run that the message names, or wait for it; then delete the adapter.",
    ],
    tenant_foreign: [
      "The key belongs to another tenant than the one that is to be deleted.",
      "Use a key of that tenant, with the scope admin.",
    ],
    upload_ended: [
      "The upload takes nothing more: it is complete, cancelled or has expired.",
      "Begin another one with POST /v1/uploads. Uploads expire after an hour.",
    ],
    upload_incomplete: [
      "The parts do not make the file that was announced: a part is unknown or named twice, or the number of bytes is another one.",
      "Name every part once, in the file's order; send what is missing.",
    ],
    checksum_mismatch: ["The file does not have the checksum `md5`.", "Send the parts again, and name them in the file's order."],
    upload_aborted: ["The upload ended before the file was complete.", "Upload it again."],
    too_many_files: ["The upload has more than one file.", "Send exactly one file per upload."],
    too_many_fields: [
      "The form has more fields than an upload may have.",
      "Send `file` and `purpose`, and what docs/openapi.json names besides.",
    ],
    unknown_field: ["The form has a field, or a file in a field, that is not known.", "Use the field names that the message lists."],
    unknown_file: ["The form has a file that is not part of an adapter.", "Send adapter_config.json and adapter_model.safetensors only."],
    job_not_cancellable: ["The job has already ended, so it cannot be cancelled.", "Nothing has to be done."],
    job_not_pausable: ["The job has already ended, or its training has, so it cannot be paused.", "Nothing has to be done."],
    job_not_paused: ["The job is not paused, so it cannot be resumed.", "Nothing has to be done: it goes on by itself."],
    run_ended: [
      "The run has ended, so sending the failed message again would change nothing.",
      "Mend what the failed message says, and request the run again.",
    ],
    nothing_promoted: ["No version of the adapter is promoted, so there is nothing to roll back.", "Promote a version."],
    version_unknown: ["The adapter has no such version.", "Use one that the message lists."],
    version_loading: [
      "The version was retired to make room, and is being loaded again because it was asked for.",
      "Try again after the seconds in the header Retry-After.",
    ],
    version_missing: [
      "The name has no version.",
      "Write TENANT/ADAPTER@VERSION; `loraline adapters delete` deletes an adapter with all its versions.",
    ],
    model_is_base: ["The model is a base, which only the operator can remove.", "Delete versions of adapters only."],
    not_deleted: [
      "The version is not deleted yet; the command was accepted and may still be carried out.",
      "Look at the adapter in a moment, or try again.",
    ],
    keep_not_set: [
      "`keep` has not changed yet; the command was accepted and may still be carried out.",
      "Look at the adapter in a moment, or try again.",
    ],
    version_not_servable: [
      "The version was refused or deleted, so it cannot be used.",
      "Use another version; the message says why this one cannot be used.",
    ],
    alias_not_moved: [
      "The alias has not moved yet; the command was accepted and may still be carried out.",
      "Look at the adapter in a moment, or try again.",
    ],
    not_placed: [
      "The placement has not changed yet; the command was accepted and may still be carried out.",
      "Look at the adapter in a moment, or try again.",
    ],
  },
);
