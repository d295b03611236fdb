/** Bodies and answers of the console's session, and of what it is told while it is open. */
import { z } from "zod";
import { scopes } from "../api-key.ts";
import { isoTime, tenantName } from "../names.ts";
import { datasetState, runState } from "../state.ts";

/** How long a session lasts. It ends earlier with the key that it was begun with. */
export const sessionLastsMs = 12 * 60 * 60 * 1000;
/** How long a link may be opened, once. */
export const signInLinkLastsMs = 15 * 60 * 1000;

/**
 * KV `sessions`: a browser that is signed in, or a link by which one may sign in once. Neither holds the key itself: each request of a session
 * is judged by the key's own record, found by its hash, so whatever ends the key ends the session.
 */
export const sessionState = z.object({
  kind: z.enum(["session", "link"]),
  tenant: tenantName,
  key: z.string().nullable().describe("sha256 of the API key, hex, as in KV `keys`; null: it was begun with a token."),
  token: z.string().nullish().describe("The issuer's access token, encrypted with the installation's secret."),
  refresh: z
    .string()
    .nullish()
    .describe("What the issuer gives the next access token for, encrypted likewise. Absent: the session ends with its token."),
  issuedAt: isoTime.nullish().describe("When the issuer gave the access token, and until when that holds."),
  tokenEndsAt: isoTime.nullish(),
  refreshingUntil: isoTime.nullish().describe("A gateway asks the issuer for the next token, and the others leave it to it until then."),
  createdAt: isoTime,
  expiresAt: isoTime,
});

export type SessionState = z.infer<typeof sessionState>;

/** Body of `POST /v1/loraline/session`. */
export const beginSessionBody = z.union(
  [z.strictObject({ api_key: z.string().min(1).max(500) }), z.strictObject({ link: z.string().min(1).max(200) })],
  { error: "give `api_key`, or `link`: what follows `#link=` in the address that `loraline console` prints" },
);
export const sessionView = z.object({
  tenant: z.string(),
  name: z.string().describe("Of the key, or of the token's subject."),
  scopes: z.array(z.enum(scopes)),
  models: z.array(z.string()).nullable().describe("The only models that it may name; null: all."),
  expires_at: isoTime.nullable().describe("When the session ends; null: the request came with a key or token of its own."),
});
export const signInOptions = z.object({
  issuer: z.string().nullable().describe("Where people sign in (`/console/oidc/start`); null: with keys only."),
});
export type SessionView = z.infer<typeof sessionView>;
export const signInLink = z.object({
  link: z.string().describe("Goes behind `#link=` of the console's address. It can be used once."),
  expires_at: isoTime,
});
export const sessionEnded = z.object({ ended: z.boolean().describe("false: there was none.") });

/**
 * The data of one event of `GET /v1/loraline/live`. The event's id goes into `Last-Event-ID` when the stream is opened again. `ready` comes
 * first: with `resumed: false` something may have been missed, and whatever is shown has to be read anew. `beat` comes every ten seconds.
 */
export const liveEvent = z.discriminatedUnion("type", [
  z.object({ type: z.literal("ready"), resumed: z.boolean() }),
  z.object({ type: z.literal("beat") }),
  z.object({ type: z.literal("run"), run: runState }),
  z.object({ type: z.literal("dataset"), dataset: datasetState }),
  z.object({ type: z.literal("adapter"), adapter: z.string().describe("The adapter of this name has changed.") }),
]);
export type LiveEvent = z.infer<typeof liveEvent>;
