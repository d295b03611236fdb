/** `/v1/loraline/live`: what changes, as server-sent events. */
import type { ServerResponse } from "node:http";
import type { LiveEvent } from "@loraline/contracts";
import { PermanentError } from "@loraline/runtime";
import type { FastifyInstance, FastifyRequest } from "fastify";
import type { Caller } from "../access/auth.ts";
import { seesAdapter } from "../access/decide-models.ts";
import { badRequest } from "../errors.ts";
import type { Changes, Numbered } from "./changes.ts";

const beatMs = 10_000;
/** A reader that is so far behind is cut off, or whose tenant's pages are together; it comes back and is told what it missed. */
const mostWaitingBytes = 4 * 1024 ** 2;
const mostWaitingOfTenant = 16 * 1024 ** 2;
/** Open pages of one tenant at one gateway: they take no turns, so this is what keeps them from filling it. */
const mostOfTenant = 200;

interface LiveDeps {
  changes: Changes;
  /** Judges the request's key or session again. */
  checkCaller: (request: FastifyRequest) => Promise<Caller>;
  /** Aborted when the gateway is about to end. */
  signal: AbortSignal;
}

export function liveRoute({ changes, checkCaller, signal }: LiveDeps): (app: FastifyInstance) => void {
  const open = new Map<string, Set<ServerResponse>>();
  return (app) => {
    app.get("/loraline/live", async (request, reply) => {
      if (!(request.headers.accept ?? "").includes("text/event-stream"))
        throw badRequest("stream_only", "This route answers with server-sent events. Send `Accept: text/event-stream`.");
      let { caller } = request;
      const { tenant } = caller;
      const { raw: response } = reply;
      const pages = open.get(tenant) ?? new Set();
      if (pages.size >= mostOfTenant) {
        throw new PermanentError(
          "too_many_pages",
          `${pages.size} pages of this tenant follow changes already. Close some that are not looked at.`,
          { status: 429 },
        );
      }
      open.set(tenant, pages.add(response));
      response.once("close", () => {
        pages.delete(response);
        if (pages.size === 0) open.delete(tenant);
      });
      const write = (json: string, id?: string): void => {
        if (response.destroyed) return;
        response.write(`${id === undefined ? "" : `id: ${id}\n`}data: ${json}\n\n`);
        const { writableLength } = response;
        if (writableLength < mostWaitingOfTenant / mostOfTenant) return;
        const ofTenant = [...pages].reduce((sum, page) => sum + page.writableLength, 0);
        if (writableLength > mostWaitingBytes || ofTenant > mostWaitingOfTenant) response.destroy();
      };
      const writeEvent = (event: LiveEvent, id?: string): void => write(JSON.stringify(event), id);
      // Until the page is told that it may begin, changes wait.
      let waiting: Numbered[] | undefined = [];
      const tell = (change: Numbered): void => {
        if (waiting !== undefined) waiting.push(change);
        else if (mayKnow(caller, change)) write(change.json, change.id);
      };
      const feed = await changes.follow(tenant, tell);
      if (signal.aborted || response.destroyed) return feed[Symbol.dispose]();

      reply.hijack();
      response.writeHead(200, {
        ...(reply.getHeaders() as Record<string, string>),
        "content-type": "text/event-stream; charset=utf-8",
        "cache-control": "no-store",
        "x-accel-buffering": "no",
      });
      const lastSeen = request.headers["last-event-id"];
      const missed = typeof lastSeen === "string" ? feed.since(lastSeen) : undefined;
      if (missed === undefined) writeEvent({ type: "ready", resumed: false }, feed.newest);
      else {
        writeEvent({ type: "ready", resumed: true });
        for (const change of missed) if (mayKnow(caller, change)) write(change.json, change.id);
      }
      // With a number, all that waits is in what was missed, or older than what the page will read now.
      waiting = undefined;

      const beat = setInterval(() => {
        checkCaller(request).then(
          (now) => {
            caller = now;
            writeEvent({ type: "beat" });
          },
          () => response.end(),
        );
      }, beatMs);
      const stop = (): void => void response.end();
      signal.addEventListener("abort", stop, { once: true });
      response.once("close", () => {
        clearInterval(beat);
        signal.removeEventListener("abort", stop);
        feed[Symbol.dispose]();
      });
      return reply;
    });
  };
}

const mayKnow = (caller: Caller, { type, adapter }: Numbered): boolean =>
  (type === "adapter" || caller.scopes.has("train")) && (adapter === null || seesAdapter(caller, adapter));
