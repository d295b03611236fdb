/** What a soak's clients do, each request with its line in the history. They know the HTTP API only, and use no SDK, which would hide answers. */
import { createHash } from "node:crypto";
import { base } from "../line-under-test.ts";
import { bootstrapKey, type ServiceUnderTest, tenant } from "../services-under-test.ts";
import type { Entry, Move } from "./history.ts";
import { movesOf } from "./read-stored.ts";

/** A hung service is found at the end. A client must go on before. */
const patienceMs = 60_000;

export type Tell = (entry: Entry) => void;

/** A gateway's process: the one that was started n-th. */
export const processOf = ({ id, starts }: ServiceUnderTest): string => `${id}#${starts}`;

interface Reply {
  at: number;
  until: number;
  /** 0: none. */
  status: number;
  text: string;
}

async function send(gateway: ServiceUnderTest, method: string, path: string, body?: object | FormData, key?: string): Promise<Reply> {
  const at = Date.now();
  let status = 0;
  try {
    const isForm = body instanceof FormData;
    const response = await fetch(gateway.url + path, {
      method,
      headers: {
        authorization: `Bearer ${bootstrapKey}`,
        ...(body === undefined || isForm ? {} : { "content-type": "application/json" }),
        ...(key === undefined ? {} : { "idempotency-key": key }),
      },
      ...(body === undefined ? {} : { body: isForm ? body : JSON.stringify(body) }),
      signal: AbortSignal.timeout(patienceMs),
    });
    status = response.status;
    return { at, status, text: await response.text(), until: Date.now() };
  } catch {
    return { at, status: 0, text: "", until: Date.now() };
  }
}

const parsed = (text: string): Record<string, unknown> => {
  try {
    return JSON.parse(text) as Record<string, unknown>;
  } catch {
    return {};
  }
};
const codeOf = (text: string): string | undefined => (parsed(text)["error"] as { code?: string } | undefined)?.code;

/** What became of a command: without an answer, and with an answer 5xx, it may have been done or not. */
const commandOf = ({ at, until, status, text }: Reply) => ({
  at,
  until,
  status,
  code: codeOf(text),
  outcome: status >= 200 && status < 300 ? ("ok" as const) : status >= 400 && status < 500 ? ("refused" as const) : ("unknown" as const),
});

/** Asks again with the same key until there is an answer, as a careful client does. */
async function untilAnswered(
  gateway: () => ServiceUnderTest,
  go: () => boolean,
  ask: (gateway: ServiceUnderTest) => Promise<Reply>,
): Promise<Reply> {
  for (;;) {
    const reply = await ask(gateway());
    if ((reply.status !== 0 && reply.status < 500 && reply.status !== 429) || !go()) return reply;
    await new Promise((resolve) => setTimeout(resolve, 250));
  }
}

export function createClient({ tell, gateway, go }: { tell: Tell; gateway: () => ServiceUnderTest; go: () => boolean }) {
  return {
    async chat(
      adapter: string,
      asked: string,
      { stream, via = gateway(), user }: { stream: boolean; via?: ServiceUnderTest; user?: string },
    ) {
      const process = processOf(via);
      const body = {
        model: `${tenant}/${adapter}`,
        messages: [{ role: "user", content: asked }],
        ...(user === undefined ? {} : { user }),
        ...(stream ? { stream, stream_options: { include_usage: true } } : {}),
      };
      const { at, until, status, text } = await send(via, "POST", "/v1/chat/completions", body);
      const answer = status !== 200 ? undefined : stream ? readStream(text) : readAnswer(text);
      const outcome = answer !== undefined ? "answered" : status >= 400 ? "refused" : "broken";
      const entry: Entry = {
        kind: "chat",
        at,
        until,
        process,
        adapter,
        user,
        asked,
        outcome,
        status,
        code: status >= 400 ? codeOf(text) : undefined,
        ...answer,
      };
      tell(entry);
      return entry;
    },
    /** @returns the dataset's id once it is acknowledged. */
    async upload(name: string, content: string): Promise<string | undefined> {
      const form = (): FormData => {
        const made = new FormData();
        made.set("purpose", "fine-tune");
        made.set("file", new File([content], name));
        return made;
      };
      const reply = await untilAnswered(gateway, go, (via) => send(via, "POST", "/v1/files", form(), `upload-${name}`));
      const file = reply.status === 200 ? String(parsed(reply.text)["id"]).replace("file-", "") : undefined;
      tell({ kind: "upload", name, rows: content.trimEnd().split("\n").length, sha256: sha256(content), file, ...commandOf(reply) });
      return file;
    },
    async content(file: string): Promise<void> {
      const reply = await untilAnswered(
        gateway,
        () => true,
        (via) => send(via, "GET", `/v1/files/file-${file}/content`),
      );
      tell({ kind: "content", at: reply.at, until: reply.until, file, sha256: sha256(reply.text) });
    },
    async run(key: string, adapter: string, file: string, settings: object): Promise<string | undefined> {
      const body = { model: base, training_file: `file-${file}`, suffix: adapter, loraline: settings };
      const reply = await untilAnswered(gateway, go, (via) => send(via, "POST", "/v1/fine_tuning/jobs", body, key));
      const run = reply.status === 200 ? String(parsed(reply.text)["id"]).replace("ftjob-", "") : undefined;
      tell({ kind: "run", key, adapter, run, ...commandOf(reply) });
      return run;
    },
    async phase(run: string): Promise<string | undefined> {
      const { status, text } = await send(gateway(), "GET", `/v1/loraline/runs/${run}`);
      return status === 200 ? String(parsed(text)["phase"]) : undefined;
    },
    /** All that the API shows of a run, for the message of a test that waited for it in vain. */
    async describe(run: string): Promise<string> {
      const { status, text } = await send(gateway(), "GET", `/v1/loraline/runs/${run}`);
      return `${run}: ${status} ${text}`;
    },
    async limit(adapter: string, limits: object): Promise<void> {
      const { status, text } = await send(gateway(), "PUT", `/v1/loraline/limits/${adapter}`, limits);
      if (status !== 200) throw new Error(`the limit was refused: ${status} ${text}`);
    },
    /** @returns undefined once it is acknowledged, or what was answered instead. */
    async move(verb: "promote" | "rollback", adapter: string, body: object): Promise<string | undefined> {
      const reply = await send(gateway(), "POST", `/v1/loraline/adapters/${adapter}/${verb}`, body);
      const isDone = reply.status === 200;
      tell({ kind: "move", verb, adapter, moves: isDone ? adapterOf(reply.text).moves : [], ...commandOf(reply) });
      return isDone ? undefined : `${reply.status} ${reply.text}`;
    },
    /** What the API shows of an adapter; undefined: it gave no answer. */
    async look(adapter: string) {
      const via = gateway();
      const process = processOf(via);
      const { at, until, status, text } = await send(via, "GET", `/v1/loraline/adapters/${adapter}`);
      if (status !== 200) return undefined;
      const seen = adapterOf(text);
      tell({
        kind: "seen",
        at,
        until,
        process,
        adapter,
        alias: seen.alias,
        moves: seen.moves,
        versions: seen.versions.map(({ version, digest }) => ({ version, digest })),
      });
      return seen;
    },
  };
}
const sha256 = (text: string): string => createHash("sha256").update(text).digest("hex");

function adapterOf(text: string) {
  const { adapter } = parsed(text) as {
    adapter: {
      canary?: object | null;
      awaiting?: object | null;
      alias: number | null;
      history: Parameters<typeof movesOf>[0];
      versions: { version: number; digest: string; status: string }[];
    };
  };
  const moves: Move[] = movesOf(adapter.history);
  return { alias: adapter.alias, moves, versions: adapter.versions, isMoving: Boolean(adapter.canary ?? adapter.awaiting) };
}

const versionOf = (model: unknown): number => Number(String(model).split("@")[1]);

interface Completion {
  model: string;
  choices: { message?: { content: string }; delta?: { content?: string }; finish_reason: string | null }[];
  usage?: { prompt_tokens: number; completion_tokens: number };
}

function readAnswer(text: string) {
  const { model, choices, usage } = parsed(text) as unknown as Partial<Completion>;
  const content = choices?.[0]?.message?.content;
  return content === undefined || model === undefined ? undefined : { version: versionOf(model), text: content, usage };
}

/** A stream that ends without `[DONE]`, or with an error, is no answer. */
function readStream(text: string) {
  const events = text.split("\n\n").flatMap((event) => (event.startsWith("data: ") ? [event.slice("data: ".length)] : []));
  if (events.at(-1) !== "[DONE]") return undefined;
  const chunks = events.slice(0, -1).map((event) => parsed(event) as unknown as Completion);
  if (chunks.some((chunk) => "error" in chunk)) return undefined;
  const said = chunks.map(({ choices }) => choices[0]?.delta?.content ?? "").join("");
  const usage = chunks.findLast((chunk) => chunk.usage)?.usage;
  return { version: versionOf(chunks[0]?.model), text: said, usage };
}
