/**
 * Who gave a command, proven. Commands of the API and of Kubernetes go through the same subjects as those of tenants' NATS users, who can
 * write anything into a message. So a service that has verified who asks signs that together with the message, by the installation's
 * secret.
 */
import { createHash, createHmac, timingSafeEqual } from "node:crypto";
import { actor as actorSchema, type Actor } from "@loraline/contracts";
import type { MsgHdrs } from "@nats-io/transport-node";
import { z } from "zod";

const actorHeader = "loraline-actor";
const proofHeader = "loraline-proof";
/**
 * A tenant's NATS user sees the messages about its tenant and could send one again. With the same id the stream drops it for ten minutes
 * (`dedupeMs` of every stream of commands), and after these five the proof is over.
 */
const validMs = 5 * 60_000;

const signed = z.object({ actor: actorSchema, at: z.iso.datetime() });

interface Proven {
  subject: string;
  headers: MsgHdrs;
  body: string | Uint8Array;
}

const proofOf = ({ subject, headers, body }: Proven, secret: string): Buffer =>
  createHmac("sha256", secret)
    .update(
      JSON.stringify([
        "actor",
        subject,
        headers.get("Nats-Msg-Id"),
        headers.get(actorHeader),
        createHash("sha256").update(body).digest("hex"),
      ]),
    )
    .digest();

/** Signs the message, whose headers have its `Nats-Msg-Id` already. */
export function proveActor(message: Proven, actor: Actor, secret: string, now: Date): void {
  const said = JSON.stringify({ actor, at: now.toISOString() });
  message.headers.set(actorHeader, Buffer.from(said).toString("base64url"));
  message.headers.set(proofHeader, proofOf(message, secret).toString("base64url"));
}

/**
 * @param message.storedAt - ISO 8601; when the stream took it.
 * @returns undefined: the message has no proof that holds.
 */
export function provenActor(message: Proven & { storedAt: string }, secret: string): Actor | undefined {
  const given = Buffer.from(message.headers.get(proofHeader), "base64url");
  const right = proofOf(message, secret);
  if (given.length !== right.length || !timingSafeEqual(given, right)) return undefined;
  const { actor, at } = signed.parse(JSON.parse(Buffer.from(message.headers.get(actorHeader), "base64url").toString("utf8")));
  return Math.abs(Date.parse(message.storedAt) - Date.parse(at)) <= validMs ? actor : undefined;
}
