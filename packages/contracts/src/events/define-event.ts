/** Declares events, and derives their subjects from the declarations. */
import type { z } from "zod";
import { adapterName, digestHex, tenantName, ulid } from "../names.ts";

const nouns = { dataset: ulid, run: ulid, adapter: adapterName, chunk: digestHex } as const;
export type Noun = keyof typeof nouns;

export interface EventDef<Type extends string = string, Data extends z.ZodType = z.ZodType> {
  /** `<noun>.<verb>.v<n>`, which is also the CloudEvents type. */
  readonly type: Type;
  readonly noun: Noun;
  /** `<verb>.v<n>`: the tail of the subject. */
  readonly tail: string;
  readonly summary: string;
  readonly data: Data;
  /** How long its stream keeps it, in ms. Absent: as long as what it is about, or as the stream says. */
  readonly lastsMs?: number;
}

export type EventData<E extends EventDef> = z.output<E["data"]>;
export type EventInput<E extends EventDef> = z.input<E["data"]>;

/** What an event is about: the two variable tokens of its subject. */
export interface EventAddress {
  readonly tenant: string;
  /** ULID of the dataset or run, the adapter's name, or the hex digits that name a chunk's work. */
  readonly id: string;
}

/** An event that was read, in the form that folds take. For several events it is a union, discriminated by `type`. */
export type SeenEvent<E extends EventDef> = E extends EventDef
  ? {
      type: E["type"];
      at: EventAddress;
      data: EventData<E>;
      /** ISO 8601; the producer's clock. */
      time: string;
      /** Sequence in its stream. */
      seq: number;
      trace: string | null;
    }
  : never;

export function defineEvent<Type extends `${Noun}.${string}.v${number}`, Data extends z.ZodType>(
  type: Type,
  summary: string,
  data: Data,
): EventDef<Type, Data> {
  const [noun, ...tail] = type.split(".");
  return { type, noun: noun as Noun, tail: tail.join("."), summary, data };
}

/**
 * Subject of one event: `loraline.<tenant>.<noun>.<id>.<verb>.v<n>`.
 * @throws if tenant or id contain characters that are not allowed, because a dot or a star would change the meaning of the subject.
 */
export function subjectFor(event: EventDef, at: EventAddress): string {
  const tenant = tenantName.parse(at.tenant);
  const id = nouns[event.noun].parse(at.id);
  return `loraline.${tenant}.${event.noun}.${id}.${event.tail}`;
}

/** Filter that matches this event of every tenant and id, or of the given ones. */
export function filterFor(event: EventDef, at: Partial<EventAddress> = {}): string {
  return `loraline.${at.tenant ?? "*"}.${event.noun}.${at.id ?? "*"}.${event.tail}`;
}

/** Filter that matches every event about one entity. */
export const everySubjectOf = (noun: Noun, at: EventAddress): string =>
  `loraline.${tenantName.parse(at.tenant)}.${noun}.${nouns[noun].parse(at.id)}.>`;

/** The tenant of a subject, also if the rest of the subject is not one of our events. */
export const tenantOfSubject = (subject: string): string | undefined => subject.split(".")[1];

/** Parses a subject; undefined if it is not the subject of one of our events, or its tenant or id is not valid. */
export function parseSubject(subject: string): (EventAddress & { type: string; noun: Noun }) | undefined {
  const [root, tenant, noun, id, ...tail] = subject.split(".");
  if (root !== "loraline" || tenant === undefined || id === undefined || noun === undefined || !Object.hasOwn(nouns, noun))
    return undefined;
  if (tail.length !== 2 || !tenantName.safeParse(tenant).success || !nouns[noun as Noun].safeParse(id).success) return undefined;
  return { tenant, id, noun: noun as Noun, type: `${noun}.${tail.join(".")}` };
}
