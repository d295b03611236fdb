/** One request to one replica. Its answer is collected, or passed on piece by piece at the pace of the client. */
import type { IncomingHttpHeaders } from "node:http";
import { Agent, type Dispatcher } from "undici";

interface EngineQuestion {
  /** Base URL of the replica. */
  url: string;
  /** Below it, without a slash in front. */
  path: string;
  headers: Record<string, string>;
  body: string;
  /** Called when the answer begins; for a stream, with its first byte. Returns the reader of the pieces; undefined: the answer is collected. */
  onAnswer(status: number, contentType: string): EngineReader | undefined;
}

export interface EngineReader {
  /** Returns whether more may come at once; if not, `resume` is called when it may. */
  read(chunk: Buffer, resume: () => void): boolean;
  end(): void;
  /** The answer broke off, also by `abort`. */
  broken(error: Error): void;
}

/** `text` of an answer that was collected. */
export interface EngineAnswer {
  status: number;
  contentType: string;
  text: string;
}

export interface RunningQuestion {
  /** Resolves when the answer was collected, or, if it is read piece by piece, when it begins. Rejects if it never begins. */
  answer: Promise<EngineAnswer>;
  abort(reason: Error): void;
}

interface EngineClient extends AsyncDisposable {
  ask(question: EngineQuestion): RunningQuestion;
}

export function createEngineClient({
  answerWithinMs,
  connectWithinMs,
  apiKey,
}: {
  answerWithinMs: number;
  connectWithinMs: number;
  /** The engines' key, VLLM_API_KEY. */
  apiKey?: string | undefined;
}): EngineClient {
  // One request per connection: an engine's answers are long, and must not wait for one another.
  const agent = new Agent({
    connect: { timeout: connectWithinMs },
    headersTimeout: answerWithinMs,
    bodyTimeout: answerWithinMs,
    pipelining: 1,
    allowH2: false,
  });
  const authorization = apiKey === undefined ? {} : { authorization: `Bearer ${apiKey}` };
  return {
    ask({ url, path, headers, body, onAnswer }) {
      const { promise: answer, resolve, reject } = Promise.withResolvers<EngineAnswer>();
      let controller: Dispatcher.DispatchController | undefined;
      let aborted: Error | undefined;
      let reader: EngineReader | undefined;
      let began: Omit<EngineAnswer, "text"> | undefined;
      const collected: Buffer[] = [];
      let opened = false;
      const open = (head: Omit<EngineAnswer, "text">): void => {
        if (opened) return;
        opened = true;
        reader = onAnswer(head.status, head.contentType);
        if (reader !== undefined) resolve({ ...head, text: "" });
      };
      const { origin, pathname } = new URL(url);
      agent.dispatch(
        {
          origin,
          path: pathname.endsWith("/") ? pathname + path : `${pathname}/${path}`,
          method: "POST",
          headers: { ...headers, ...authorization },
          body,
        },
        {
          onRequestStart(started) {
            controller = started;
            if (aborted !== undefined) started.abort(aborted);
          },
          onResponseStart(_controller, status, answered) {
            if (status < 200) return;
            began = { status, contentType: headerOf(answered, "content-type") ?? "application/json" };
            // vLLM sends the head of a stream before it has computed anything: until the first byte comes, another may still be asked.
            if (status !== 200 || !began.contentType.startsWith("text/event-stream")) open(began);
          },
          onResponseData(running, chunk) {
            if (began !== undefined) open(began);
            if (reader === undefined) collected.push(chunk);
            else if (!reader.read(chunk, () => running.resume())) running.pause();
          },
          onResponseEnd() {
            if (began !== undefined) open(began);
            if (reader !== undefined) reader.end();
            else if (began === undefined) reject(new Error("the engine answered nothing"));
            else resolve({ ...began, text: (collected.length === 1 ? collected[0] : Buffer.concat(collected))?.toString("utf8") ?? "" });
          },
          onResponseError(_controller, error) {
            if (reader !== undefined) reader.broken(error);
            else reject(error);
          },
        },
      );
      return {
        answer,
        abort(reason) {
          aborted = reason;
          controller?.abort(reason);
        },
      };
    },
    [Symbol.asyncDispose]: () => agent.destroy(),
  };
}

const headerOf = (headers: IncomingHttpHeaders, name: string): string | undefined => {
  const value = headers[name];
  return Array.isArray(value) ? value[0] : value;
};
