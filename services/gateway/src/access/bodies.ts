/**
 * JSON bodies in this gateway's memory: so many bytes of one tenant, and so many of all. Otherwise whoever sends large bodies, or begins many
 * and lets them wait, fills it, and everybody's answers break off. Small bodies of a tenant that has little here are taken whatever others have.
 */
import { Transform } from "node:stream";
import { pipeline } from "node:stream/promises";
import { RetryLaterError } from "@loraline/runtime";
import type { FastifyInstance } from "fastify";

const MiB = 1024 ** 2;
/** What is always taken: a body of so many bytes, of a tenant that has no more than so many here. */
const small = { body: 64 * 1024, tenant: MiB };
/** Above so many characters values are counted, too. */
const weighedFrom = 64 * 1024;
/** What a value takes beside its text, in bytes. */
const bytesOfValue = 64;

interface HeldBody extends Disposable {
  /** More of it came than was announced. @throws RetryLaterError `too_many_bodies` */
  grow(bytes: number): void;
  /** It was read, and has this weight from here on. @throws RetryLaterError `too_many_bodies` */
  settle(bytes: number): void;
}

interface Bodies {
  /**
   * Counts a body until it is disposed.
   * @param bytes - as announced; 0: it was not.
   * @throws RetryLaterError `too_many_bodies`
   */
  begin(tenant: string, bytes: number): HeldBody;
}

/** @param most - bytes of one tenant; of all tenants it is twice that. */
export function createBodies(most: number): Bodies {
  const held = new Map<string, number>();
  let total = 0;
  const change = (tenant: string, by: number): void => {
    total += by;
    const own = (held.get(tenant) ?? 0) + by;
    if (own > 0) held.set(tenant, own);
    else held.delete(tenant);
  };
  const take = (tenant: string, bytes: number, whole: number): void => {
    const own = (held.get(tenant) ?? 0) + bytes;
    const isSmall = whole <= small.body && own <= small.tenant;
    if (own > most || (total + bytes > 2 * most && !isSmall)) throw tooMany(own > most ? "of this tenant " : "", most);
    change(tenant, bytes);
  };
  return {
    begin(tenant, bytes) {
      take(tenant, bytes, bytes);
      let mine = bytes;
      return {
        grow(more) {
          take(tenant, more, mine + more);
          mine += more;
        },
        settle(weight) {
          if (weight > mine) take(tenant, weight - mine, weight);
          else change(tenant, weight - mine);
          mine = weight;
        },
        [Symbol.dispose]() {
          change(tenant, -mine);
          mine = 0;
        },
      };
    },
  };
}

const tooMany = (whose: string, most: number): RetryLaterError =>
  new RetryLaterError(
    "too_many_bodies",
    1000,
    `The bodies of requests ${whose}that are under way at this gateway are more than it keeps in memory (${Math.round(most / MiB)} MiB of one tenant). Try again when one has ended, or send less at once.`,
  );

declare module "fastify" {
  interface FastifyRequest {
    /** Its JSON body in memory; null: it has none. */
    heldBody: HeldBody | null;
  }
}

/**
 * Counts the bodies of all routes of this instance, from when they may be read until the answer is complete. Callers must be known before.
 * @param largest - bytes that a body may have.
 */
export function holdBodies(app: FastifyInstance, bodies: Bodies, largest: number): void {
  app.decorateRequest("heldBody", null);
  app.addHook("onRequest", (request, reply, done) => {
    const { "content-type": type = "", "content-length": length, "transfer-encoding": encoding } = request.headers;
    // Forms go to the disk as they come.
    if ((length === undefined && encoding === undefined) || type.startsWith("multipart/")) return done();
    const body = bodies.begin(request.caller.tenant, Math.min(Number(length ?? 0), largest));
    request.heldBody = body;
    if (reply.raw.closed) body[Symbol.dispose]();
    else reply.raw.once("close", () => body[Symbol.dispose]());
    done();
  });
  app.addHook("preParsing", (request, _reply, payload, done) => {
    const { heldBody, headers } = request;
    if (heldBody === null || headers["content-length"] !== undefined) return done(null, payload);
    const counted = new Transform({
      transform(chunk: Buffer, _encoding, next) {
        try {
          heldBody.grow(chunk.byteLength);
          next(null, chunk);
        } catch (error) {
          next(error as Error);
        }
      },
    });
    pipeline(payload, counted).catch(() => undefined); // whoever reads `counted` is told
    done(null, counted);
  });
}

/** @param valuesIn - counts the values of a JSON text. @returns bytes that the body of this text takes in memory. */
export const weightOf = (text: string, valuesIn: (text: string) => number): number =>
  text.length < weighedFrom ? text.length : text.length + valuesIn(text) * bytesOfValue;
