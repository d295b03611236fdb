/**
 * The port to an engine: what Loraline needs of any program that serves a base with LoRA adapters. vllm/ is the first implementation;
 * table.ts lists them all.
 *
 * What an engine must be able to do, beside what these methods say:
 * - It answers OpenAI's API under its URL, and takes a LoRA name or the base's name as `model`: the gateway asks it directly.
 * - It reads an adapter from a folder with `adapter_config.json` and `adapter_model.safetensors`, and may read it again while it lists it.
 */
import type { ProbeRecord } from "@loraline/contracts";

/** A model as the engine lists it. */
interface ListedModel {
  /** Name that it is asked for by. */
  name: string;
  /** Folder it was loaded from; null: the engine does not say. */
  path: string | null;
  /** false: a base. */
  isLora: boolean;
}

/** What the engine said to a load or unload. What is loaded afterwards is read from its list: messages differ between versions. */
export type LoadOutcome =
  | { kind: "done" }
  /** A load of a name that is loaded. */
  | { kind: "already-loaded" }
  /** `status`: HTTP status of the answer. */
  | { kind: "refused"; status: number; message: string }
  /** This process cannot load adapters while it runs; the message says how it has to be started. */
  | { kind: "feature-off"; message: string }
  /** No answer, or one that says nothing about the adapter. */
  | { kind: "unknown"; message: string };

export interface LoraEngine extends Disposable {
  /** What people call it, for messages: "vLLM". */
  readonly product: string;
  /** Most token ids in one call of `nextTokenLogprobs`. */
  readonly maxLogprobTokens: number;
  /** `away`: it refuses connections, or says that it cannot work any more. `silent`: no answer in time, which a busy engine gives, too. */
  health(): Promise<"ready" | "away" | "silent">;
  /**
   * Which process this is: a text that changes with every start, as a new process holds no adapters.
   * @throws EngineUnknownError
   */
  incarnation(): Promise<string>;
  /**
   * How many connections were opened so far. Connections end with their process, so while this stays the same, the process that answers is
   * the one that answered before.
   */
  connections(): number;
  /** @throws EngineUnknownError */
  listModels(): Promise<ListedModel[]>;
  /** Loads the adapter in the folder `path` under this LoRA name. Never throws for what the engine answers. */
  load(loraName: string, path: string): Promise<LoadOutcome>;
  unload(loraName: string): Promise<LoadOutcome>;
  /**
   * Logprobs (natural, of the model itself: before temperature and penalties) of `tokens` right after each prompt.
   * @param model the base's name, or a LoRA name.
   * @param prompts token ids.
   * @returns one map from token id to logprob for each prompt, with every token of `tokens`.
   * @throws EngineUnknownError when there was no answer; EngineRefusedError when the engine said no.
   */
  nextTokenLogprobs(model: string, prompts: readonly (readonly number[])[], tokens: readonly number[]): Promise<Map<number, number>[]>;
  /**
   * The same after one conversation with pictures, which stand in it as data URLs.
   * @param expected token ids that the engine must make of the conversation.
   * @throws EngineUnknownError; EngineRefusedError, also when it makes other tokens.
   */
  nextTokenLogprobsInChat(
    model: string,
    messages: NonNullable<ProbeRecord["messages"]>,
    tokens: readonly number[],
    expected: readonly number[],
  ): Promise<Map<number, number>>;
  /**
   * Token ids of a conversation in the chat template that the engine applies, ready to be answered.
   * @throws EngineUnknownError, EngineRefusedError (also when the engine has no such function)
   */
  renderTemplate(model: string, messages: readonly { role: string; content: string }[]): Promise<number[]>;
  /** Text of token ids. @throws EngineUnknownError, EngineRefusedError */
  detokenize(model: string, ids: readonly number[]): Promise<string>;
}

/** Where and how one process of an engine is reached. */
export interface EngineConnection {
  url: string;
  /** Key that the engine was started with. */
  apiKey?: string | undefined;
  healthTimeoutMs?: number;
  readTimeoutMs?: number;
  /** A load blocks until the engine has read the adapter, and waits behind the step that the engine is in. */
  loadTimeoutMs?: number;
  probeTimeoutMs?: number;
}

/** No answer, or one that says nothing about the adapter: what the engine holds is not known. */
export class EngineUnknownError extends Error {
  override readonly name = "EngineUnknownError";
  /** The process does not even accept connections; a time-out may just mean that it is busy. */
  readonly gone: boolean;
  /** The engine asks for another key than the agent has. */
  readonly unauthorized: boolean;
  constructor(message: string, options: ErrorOptions & { gone?: boolean; unauthorized?: boolean } = {}) {
    super(message, options);
    this.gone = options.gone ?? false;
    this.unauthorized = options.unauthorized ?? false;
  }
}

/** The engine understood the question and said no. */
export class EngineRefusedError extends Error {
  override readonly name = "EngineRefusedError";
  /** HTTP status of the answer. */
  readonly status: number;
  constructor(status: number, message: string) {
    super(message);
    this.status = status;
  }
}
