/** Turns names of fields into the form that zod's `omit` and `pick` take. */
export const maskOf = <K extends string>(...fields: readonly K[]): Record<K, true> =>
  Object.fromEntries(fields.map((field) => [field, true])) as Record<K, true>;
