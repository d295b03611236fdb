/** Names of fields as zod's `omit` and `pick` take them. */
export const maskOf = <K extends string>(...fields: readonly K[]): Record<K, true> =>
  Object.fromEntries(fields.map((field) => [field, true])) as Record<K, true>;
