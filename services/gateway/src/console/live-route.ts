/** `/v1/loraline/live`: what changes, as server-sent events. */
import type { LiveEvent } from "@loraline/contracts";
import { PermanentError } from "@loraline/runtime";
import type { FastifyInstance, FastifyRequest } from "fastify";
import type { Caller } from "../access/auth.ts";
import { seesAdapter } from "../access/decide-models.ts";
import { badRequest } from "../errors.ts";
import type { Change, Changes } from "./changes.ts";

const beatMs = 10_000;
/** A reader that is so far behind is cut off; it comes back and is told what it missed. */
const mostWaitingBytes = 4 * 1024 ** 2;
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
  const open = new Map<string, number>();
  return (app) => {
    app.get("/loraline/live", async (request, reply) => {
      if (!(request.headers.accept ?? "").includes("text/event-stream"))
        throw badRequest("stream_only", "This route answers with server-sent events. Send `Accept: text/event-stream`.");
      let { caller } = request;
      const { tenant } = caller;
      const { raw: response } = reply;
      const others = open.get(tenant) ?? 0;
      if (others >= mostOfTenant) {
        throw new PermanentError(
          "too_many_pages",
          `${others} pages of this tenant follow changes already. Close some that are not looked at.`,
          {
            status: 429,
          },
        );
      }
      open.set(tenant, others + 1);
      response.once("close", () => {
        const left = (open.get(tenant) ?? 1) - 1;
        if (left === 0) open.delete(tenant);
        else open.set(tenant, left);
      });
      const write = (event: LiveEvent, id?: string): void => {
        if (response.destroyed) return;
        response.write(`${id === undefined ? "" : `id: ${id}\n`}data: ${JSON.stringify(event)}\n\n`);
        if (response.writableLength > mostWaitingBytes) response.destroy();
      };
      // Until the page is told that it may begin, changes wait.
      let waiting: { id: string; change: Change }[] | undefined = [];
      const tell = ({ id, change }: { id: string; change: Change }): void => {
        if (waiting !== undefined) waiting.push({ id, change });
        else if (mayKnow(caller, change)) write(change, id);
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
      if (missed === undefined) write({ type: "ready", resumed: false }, feed.newest);
      else {
        write({ type: "ready", resumed: true });
        for (const { id, change } of missed) if (mayKnow(caller, change)) write(change, id);
      }
      // With a number, all that waits is in what was missed, or older than what the page will read now.
      waiting = undefined;

      const beat = setInterval(() => {
        checkCaller(request).then(
          (now) => {
            caller = now;
            write({ type: "beat" });
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

function mayKnow(caller: Caller, change: Change): boolean {
  switch (change.type) {
    case "run":
      return caller.scopes.has("train") && seesAdapter(caller, change.run.spec.adapter);
    case "dataset":
      return caller.scopes.has("train");
    case "adapter":
      return seesAdapter(caller, change.adapter);
  }
}
