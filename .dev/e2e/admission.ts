// Policies and webhooks that judge the Jobs of one namespace, and are in force when the call that makes them returns.
import { newAuthority } from "../apiserver/http.ts"
import { call, type Json, must, type Namespace, need, suspendedJob, until } from "./kit.ts"

const api = "/apis/admissionregistration.k8s.io/v1"
const probe = "admission-probe"
const ofNamespace = (ns: Namespace) => ({ matchLabels: { "kubernetes.io/metadata.name": ns.name } })
const jobs = (operation: string) => ({
  apiGroups: ["batch"],
  apiVersions: ["v1"],
  operations: [operation],
  resources: ["jobs"],
})

/** What a test does with a Job named `admission-probe`, without an effect: it tells whether a policy is in force. */
async function tryOut(ns: Namespace, operation: "CREATE" | "UPDATE") {
  const [method, name] = operation === "CREATE" ? ["POST", ""] : ["PATCH", probe]
  return call(method!, `${ns.path("jobs", name)}?dryRun=All`, suspendedJob({ name: probe, annotations: { probe } }))
}

export interface Policy {
  /** What the server says of whatever is rejected. */
  readonly message: string
  lift(): Promise<unknown>
}

/** A ValidatingAdmissionPolicy: Jobs of this namespace for which the CEL expression is false are rejected. */
export async function policy(
  ns: Namespace,
  expression: string,
  operation: "CREATE" | "UPDATE" = "CREATE",
): Promise<Policy> {
  const name = `${ns.name}-${ns.tidyUps.length}`
  const message = `policy ${name} rejects this Job`
  if (operation === "UPDATE") await ns.create("jobs", suspendedJob({ name: probe }))
  await must("POST", `${api}/validatingadmissionpolicies`, {
    metadata: { name },
    spec: {
      failurePolicy: "Fail",
      matchConstraints: { resourceRules: [jobs(operation)] },
      validations: [{ expression: `object.metadata.name != "${probe}" && (${expression})`, message }],
    },
  })
  await must("POST", `${api}/validatingadmissionpolicybindings`, {
    metadata: { name },
    spec: { policyName: name, validationActions: ["Deny"], matchResources: { namespaceSelector: ofNamespace(ns) } },
  })
  const lift = async () => {
    await call("DELETE", `${api}/validatingadmissionpolicybindings/${name}`)
    await call("DELETE", `${api}/validatingadmissionpolicies/${name}`)
  }
  ns.tidyUps.push(lift)
  const rejects = async () => (await tryOut(ns, operation)).body.message?.includes(message)
  await until(`policy ${name} is in force`, rejects)
  return { message, lift }
}

type Review = { uid: string; name: string; dryRun?: boolean; object: Json & { metadata: { name: string } } }
/** `patch`: a JSON patch; `reject`: the status that the API server is to answer. */
export type Verdict = { patch: Json } | { reject: Json } | undefined

/** A webhook on 127.0.0.1 that the API server asks about each new Job of this namespace. */
export async function webhook(
  ns: Namespace,
  judge: (review: Review) => Verdict,
): Promise<{ lift(): Promise<unknown> }> {
  const authority = await newAuthority("webhook-ca")
  const { cert, key } = await authority.issue({ cn: "webhook", sans: ["127.0.0.1"] })
  let asked = 0
  const server = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    tls: { cert, key },
    async fetch(request) {
      asked++
      const { request: review } = (await request.json()) as { request: Review }
      const verdict = review.object.metadata.name === probe ? undefined : judge(review)
      const patch = verdict && "patch" in verdict && Buffer.from(JSON.stringify(verdict.patch)).toString("base64")
      const response = {
        uid: review.uid,
        allowed: !verdict || "patch" in verdict,
        ...(patch && { patchType: "JSONPatch", patch }),
        ...(verdict && "reject" in verdict && { status: verdict.reject }),
      }
      return Response.json({ apiVersion: "admission.k8s.io/v1", kind: "AdmissionReview", response })
    },
  })
  const name = ns.name
  const hook = {
    name: "jobs.e2e.example.com",
    admissionReviewVersions: ["v1"],
    clientConfig: {
      url: `https://127.0.0.1:${server.port}/`,
      caBundle: Buffer.from(authority.cert).toString("base64"),
    },
    rules: [jobs("CREATE")],
    namespaceSelector: ofNamespace(ns),
    sideEffects: "None",
    failurePolicy: "Fail",
  }
  await must("POST", `${api}/mutatingwebhookconfigurations`, { metadata: { name }, webhooks: [hook] })
  const lift = () => call("DELETE", `${api}/mutatingwebhookconfigurations/${name}`)
  ns.tidyUps.push(lift, () => server.stop(true))
  await until("the webhook is asked", async () => {
    const { status, body } = await tryOut(ns, "CREATE")
    need(status < 500, `the webhook fails: ${body.message}`)
    return asked > 0
  })
  return { lift }
}
