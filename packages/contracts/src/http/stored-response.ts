/** KV `responses`: what `/v1/responses` keeps, so that `previous_response_id` can go on from it. */
import { z } from "zod";

/** How long a response is kept. OpenAI keeps them for 30 days. */
export const responsesKeptMs = 3 * 24 * 60 * 60 * 1000;
/** Most bytes of a tenant's responses; the oldest go first. */
export const responsesBytesOfTenant = 64 * 1024 ** 2;

const item = z.record(z.string(), z.unknown());

export const storedResponse = z.object({
  /** The name that the request asked by, by which a bound key is judged. */
  model: z.string(),
  /** The version a canary gave to the conversation's beginning is chosen by this. */
  sticky: z.string(),
  /** Items of the whole conversation before the response, without instructions. */
  input: z.array(item),
  /** The response as the client got it. */
  response: z.looseObject({ id: z.string(), output: z.array(item) }),
});
export type StoredResponse = z.infer<typeof storedResponse>;
