/**
 * OpenAI's Responses API: asked of the engine as a chat, so that routing, canaries, limits, system prompts, usage and traces are those of chats.
 *
 *   conversation ─────────────► chat ───► inference ───► response, or events ──────────────► keep
 *   stored one, then `input`    to-chat   inference.ts   response-object, response-events    stored-responses
 */
import {
  type ConversationItem,
  conversationItem,
  httpRoutes,
  type InputItem,
  type ResponseBody,
  responseBody,
  type StoredResponse,
} from "@loraline/contracts";
import type { FastifyInstance, FastifyRequest } from "fastify";
import { ulid } from "ulid";
import { boundNameOf, checkModel } from "../access/decide-models.ts";
import { parsedBody, parsedQuery } from "../body.ts";
import type { GatewayContext } from "../context.ts";
import { badRequest, notFound } from "../errors.ts";
import { askedOf, type Inference } from "../inference/inference.ts";
import type { InferenceBody } from "../inference/judge-inference-body.ts";
import type { Presentation } from "../inference/stream-answer.ts";
import { pageOf } from "../paging.ts";
import { refuseWhatIsNotOffered } from "./refuse-fields.ts";
import { createResponseEvents } from "./response-events.ts";
import { inputItemOf, itemUlid, type ResponseHead, responseIdOf, responseOfChat, responseUlid } from "./response-object.ts";
import { createStoredResponses, storedResponseBytes } from "./stored-responses.ts";
import { chatOf } from "./to-chat.ts";

/** Most stored responses that the items of one request may refer to. */
const mostReferred = 32;

export async function responseRoutes(context: GatewayContext, inference: Inference): Promise<(app: FastifyInstance) => void> {
  const stored = await createStoredResponses(context);

  /** undefined: there is none of this tenant. @throws PermanentError 403 if the caller's key is bound to other models. */
  const find = async ({ caller }: FastifyRequest, id: string): Promise<StoredResponse | undefined> => {
    const known = responseUlid(id);
    const found = known === undefined ? undefined : await stored.get({ tenant: caller.tenant, id: known });
    if (found === undefined) return undefined;
    const isBase = context.table.view().enginesOf(found.model).length > 0;
    checkModel(caller, boundNameOf(found.model, { tenant: caller.tenant, isBase }));
    return found;
  };

  /** Puts items in the place of references to them. */
  const resolved = async (request: FastifyRequest, items: readonly InputItem[]): Promise<ConversationItem[]> => {
    const responses = new Map<string, StoredResponse | undefined>();
    const referred = new Map<string, { item: ConversationItem; bytes: number }>();
    const conversation: ConversationItem[] = [];
    let bytes = 0;
    for (const [index, item] of items.entries()) {
      if (item.type !== "item_reference") {
        conversation.push(item);
        continue;
      }
      const { id } = item as { id: string };
      const known = referred.get(id) ?? (await read(id, index));
      referred.set(id, known);
      // A reference is short and its item may be long, so that a small request could become one that no memory holds.
      bytes += known.bytes;
      if (bytes > context.bodyLimitBytes)
        throw badRequest(
          "too_many_items",
          `input refers to items of more than ${context.bodyLimitBytes} bytes together, which is the most that a request may have.`,
          "input",
        );
      conversation.push(known.item);
    }
    return conversation;

    async function read(id: string, index: number): Promise<{ item: ConversationItem; bytes: number }> {
      const of = itemUlid(id) ?? "";
      if (!responses.has(of)) {
        if (responses.size === mostReferred)
          throw badRequest(
            "too_many_items",
            `input refers to items of more than ${mostReferred} responses: send the items themselves.`,
            "input",
          );
        responses.set(of, await find(request, responseIdOf(of)));
      }
      const found = responses.get(of)?.response.output.find((each) => each["id"] === id);
      if (found === undefined)
        throw badRequest(
          "item_not_found",
          `input[${index}].id: there is no item ${id}, or its response was not stored, or is no longer kept. Send the item itself.`,
          `input[${index}].id`,
        );
      return { item: conversationItem.parse(found), bytes: Buffer.byteLength(JSON.stringify(found)) };
    }
  };

  const previousOf = async (request: FastifyRequest, { previous_response_id: id }: ResponseBody): Promise<StoredResponse | undefined> => {
    if (id === null || id === undefined) return undefined;
    const found = await find(request, id);
    if (found !== undefined) return found;
    throw badRequest(
      "previous_response_not_found",
      `previous_response_id: there is no response ${id}, or it was not stored, or is no longer kept. Send its items in \`input\`.`,
      "previous_response_id",
    );
  };

  return (app) => {
    app.post(
      "/responses",
      { bodyLimit: context.bodyLimitBytes, config: { join: inference.joinVersion, sampled: true } },
      async (request, reply) => {
        const raw = request.body;
        if (typeof raw === "object" && raw !== null) refuseWhatIsNotOffered(raw as Record<string, unknown>);
        const body = parsedBody(responseBody, raw);
        const previous = await previousOf(request, body);
        const own = typeof body.input === "string" ? [{ role: "user" as const, content: body.input }] : await resolved(request, body.input);
        const input = [...(previous === undefined ? [] : conversationOf(previous)), ...own];
        const keeps = body.store ?? true;
        if (keeps && Buffer.byteLength(JSON.stringify(input)) > storedResponseBytes * 0.8)
          throw badRequest(
            "response_too_large",
            `input: the conversation has more than ${storedResponseBytes * 0.8} bytes, too many to be kept. Set store: false.`,
            "store",
          );
        const chat = chatOf(body, input);
        // A conversation keeps to the version that its beginning got.
        const asked = askedOf(request, raw as InferenceBody);
        const sticky = previous?.sticky ?? asked.sticky?.() ?? "";
        if (previous !== undefined) request.routed = null;
        const head: ResponseHead = { id: ulid(), createdAt: unixNow(), body };
        const keep = async (response: StoredResponse["response"]): Promise<boolean> =>
          keeps && (await stored.put({ tenant: request.caller.tenant, id: head.id }, { model: body.model, sticky, input, response }));
        await inference.answer(
          {
            path: "chat/completions",
            body: chat,
            asked: { ...asked, sticky: () => sticky },
            bytes: Buffer.byteLength(JSON.stringify(chat)),
            present: presentationOf(head, keeps, keep),
          },
          request,
          reply,
        );
        return reply;
      },
    );

    app.get<{ Params: { response_id: string }; Querystring: { stream?: string } }>("/responses/:response_id", async (request) => {
      const { response_id: id } = request.params;
      if (request.query.stream === "true")
        throw badRequest("unsupported", "stream is not offered here: the response is complete. Leave it out.", "stream");
      const found = await find(request, id);
      if (found === undefined) throw notFound("response", id, "response_id");
      return found.response;
    });

    app.get<{ Params: { response_id: string } }>("/responses/:response_id/input_items", async (request) => {
      const { response_id: id } = request.params;
      const { limit = 20, order = "desc", after } = parsedQuery(httpRoutes.listResponseItems.query, request.query);
      const [found, known] = [await find(request, id), responseUlid(id)];
      if (found === undefined || known === undefined) throw notFound("response", id, "response_id");
      const items = found.input.map((item, index) => inputItemOf(conversationItem.parse(item), known, index));
      return pageOf(order === "asc" ? items : items.toReversed(), { limit, after }, { idOf: (item) => item.id, view: (item) => item });
    });

    app.post<{ Params: { response_id: string } }>("/responses/:response_id/cancel", async (request) => {
      const { response_id: id } = request.params;
      if ((await find(request, id)) === undefined) throw notFound("response", id, "response_id");
      throw badRequest(
        "response_not_cancellable",
        "Only responses that were created with background: true can be cancelled, and none are here. Close the connection to stop one that is being answered.",
        "response_id",
      );
    });

    app.delete<{ Params: { response_id: string } }>("/responses/:response_id", async (request) => {
      const { response_id: id } = request.params;
      const [found, known] = [await find(request, id), responseUlid(id)];
      if (found === undefined || known === undefined) throw notFound("response", id, "response_id");
      await stored.erase({ tenant: request.caller.tenant, id: known });
      return { id: responseIdOf(known), object: "response", deleted: true };
    });
  };
}

const unixNow = (): number => Math.floor(Date.now() / 1000);

/** A stored conversation with what was answered to it. */
const conversationOf = ({ input, response }: StoredResponse): ConversationItem[] =>
  [...input, ...response.output].map((item) => conversationItem.parse(item));

function presentationOf(
  head: ResponseHead,
  keeps: boolean,
  keep: (response: StoredResponse["response"]) => Promise<boolean>,
): Presentation {
  const events = createResponseEvents(head, { store: keeps });
  const kept = async <T extends StoredResponse["response"] & { store: boolean }>(response: T): Promise<T> =>
    !keeps || (await keep(response)) ? response : { ...response, store: false };
  return {
    whole: (json) => kept(responseOfChat(head, JSON.parse(json), { store: keeps, completedAt: unixNow() })),
    push: events.push,
    async end() {
      const response = events.finished(unixNow());
      return events.end(response === undefined ? undefined : await kept(response));
    },
    broken: events.broken,
  };
}
