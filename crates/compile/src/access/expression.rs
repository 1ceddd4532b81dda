//! `when`: a CEL expression, parsed and checked once.

use super::decide::{Layer7, Subject};
use cel::{
    Context, Env, Value,
    common::ast::{EntryExpr, Expr, IdedExpr, LiteralValue, operators},
    objects::Map,
    parser::PrattParser,
};
use serde::{Serialize, Serializer};
use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    sync::{Arc, OnceLock},
};

/// A checked expression.
#[derive(Clone)]
pub struct Expression {
    source: Arc<str>,
    expression: Arc<IdedExpr>,
    /// `variable.field` of everything that is read, so that nothing else need be made.
    reads: Arc<BTreeSet<(&'static str, &'static str)>>,
}

/// What a verified token says: a map.
const CLAIMS: &str = "claims";

/// What expressions can read.
const VARIABLES: [(&str, &[&str]); 5] = [
    ("source", &["identity", "namespace", "trust_domain", "service_account", "ip"]),
    ("destination", &["port"]),
    ("request", &["method", "path", "host", "query", "remote_ip", "headers"]),
    ("connection", &["mtls"]),
    // Names of claims are the issuer's.
    (CLAIMS, &[]),
];

/// Most levels of nesting.
const MAX_DEPTH: u16 = 40;
/// Most parts of an expression.
const MAX_NODES: usize = 2000;
/// Most steps that an expression may take, by estimate: below a millisecond.
const MAX_STEPS: u64 = 20_000;
/// What a list of unknown length, such as the values of a header, counts as.
const UNKNOWN_LENGTH: u64 = 100;
/// Largest compiled size of a pattern of `matches`, in bytes: it is compiled whenever it is asked.
const REGEX_SIZE: usize = 64 << 10;

impl Expression {
    /// Parses and checks an expression.
    ///
    /// # Errors
    /// What is wrong with it, in a sentence.
    pub fn compile(source: &str) -> Result<Self, String> {
        // Not the parser that `Program::compile` uses: its stack grows without regard to the limit.
        let parser = PrattParser::new().max_recursion_depth(MAX_DEPTH).max_expression_node_count(MAX_NODES);
        let expression = parser.parse(source).map_err(|errors| {
            let text = errors.to_string();
            let first = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
            format!("it is not CEL: {}", first.trim_start_matches("ERROR: "))
        })?;
        let mut check = Check { scope: Vec::new(), depth: 0, reads: BTreeSet::new() };
        let steps = check.expression(&expression)?;
        if steps > MAX_STEPS {
            return Err(format!("it may take {steps} steps, and at most {MAX_STEPS} are allowed: nest fewer loops"));
        }
        if let Some(kind) = never_bool(&expression.expr) {
            return Err(format!("it yields {kind}, not true or false"));
        }
        let reads = Arc::new(check.reads);
        let expression = Arc::new(expression);
        Ok(Expression { source: source.into(), expression, reads })
    }

    /// Whether it needs a request to be answered.
    pub(crate) fn needs_request(&self) -> bool {
        self.reads.iter().any(|(variable, _)| matches!(*variable, "request" | CLAIMS))
    }

    /// Whether it looks at what tokens say.
    pub(crate) fn reads_claims(&self) -> bool {
        self.reads.iter().any(|(variable, _)| *variable == CLAIMS)
    }

    pub(crate) fn needs_headers(&self) -> bool {
        self.reads.contains(&("request", "headers"))
    }

    /// What it says; `None` when it does not come to an answer, such as by a missing key.
    pub fn says(&self, subject: &Subject<'_>) -> Option<bool> {
        self.holds(subject, None).ok()
    }

    /// What it says; an error when it fails.
    pub(crate) fn holds(&self, subject: &Subject<'_>, path: Option<&str>) -> Result<bool, ()> {
        let mut context = Context::with_env(env());
        for (variable, _) in VARIABLES {
            let fields = self.reads.iter().filter(|(of, _)| *of == variable && variable != CLAIMS);
            let map: HashMap<&str, Value> =
                fields.map(|(_, field)| (*field, value(subject, path, variable, field))).collect();
            if !map.is_empty() {
                context.add_variable_from_value(variable, Value::Map(Map::from(map)));
            }
        }
        if self.reads_claims() {
            let said = subject.claims.map_or_else(|| Value::Map(Map::from(HashMap::<String, Value>::new())), from_json);
            context.add_variable_from_value(CLAIMS, said);
        }
        match Value::resolve(&self.expression, &context) {
            Ok(Value::Bool(yes)) => Ok(yes),
            _ => Err(()),
        }
    }
}

fn env() -> Arc<Env> {
    static ENV: OnceLock<Arc<Env>> = OnceLock::new();
    Arc::clone(ENV.get_or_init(|| Arc::new(Env::stdlib())))
}

fn value(subject: &Subject<'_>, path: Option<&str>, variable: &str, field: &str) -> Value {
    let text = |text: Option<&str>| Value::from(text.unwrap_or_default());
    let id = subject.identity;
    match (variable, field) {
        ("source", "identity") => text(id.map(|id| id.as_str())),
        ("source", "namespace") => text(id.and_then(|id| id.namespace())),
        ("source", "trust_domain") => text(id.map(|id| id.trust_domain())),
        ("source", "service_account") => text(id.and_then(|id| id.account())),
        ("source", "ip") => Value::from(subject.peer.to_canonical().to_string()),
        ("destination", _) => Value::Int(subject.port.into()),
        ("connection", _) => Value::Bool(subject.mtls),
        _ => {
            let Layer7::Request(request) = &subject.layer7 else { return Value::Null };
            match field {
                "method" => Value::from(request.method),
                "path" => Value::from(path.unwrap_or(request.path)),
                "host" => Value::from(request.host),
                "query" => text(request.query),
                "remote_ip" => Value::from(subject.client.to_canonical().to_string()),
                _ => request.headers.map_or(Value::Null, headers),
            }
        }
    }
}

/// Values that are not UTF-8 keep everything of theirs that is, so that they cannot slip past a comparison by one odd byte.
fn headers(headers: &http::HeaderMap) -> Value {
    let mut map: HashMap<&str, Value> = HashMap::with_capacity(headers.keys_len());
    for name in headers.keys() {
        let values = headers.get_all(name).iter();
        let values: Vec<Value> = values.map(|v| Value::from(&*String::from_utf8_lossy(v.as_bytes()))).collect();
        map.insert(name.as_str(), Value::List(Arc::new(values)));
    }
    Value::Map(Map::from(map))
}

/// What a token says, as CEL has it.
fn from_json(value: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    match value {
        Json::Null => Value::Null,
        Json::Bool(yes) => Value::Bool(*yes),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Value::Int(number),
            (None, Some(number)) => Value::UInt(number),
            (None, None) => number.as_f64().map_or(Value::Null, Value::Float),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(list) => Value::List(Arc::new(list.iter().map(from_json).collect())),
        Json::Object(members) => {
            let members: HashMap<String, Value> =
                members.iter().map(|(name, value)| (name.clone(), from_json(value))).collect();
            Value::Map(Map::from(members))
        }
    }
}

/// Walks over an expression: what it reads, and how much work it is.
struct Check<'e> {
    /// Names that loops define.
    scope: Vec<&'e str>,
    depth: u16,
    reads: BTreeSet<(&'static str, &'static str)>,
}

impl<'e> Check<'e> {
    fn expression(&mut self, expression: &'e IdedExpr) -> Result<u64, String> {
        if self.depth > MAX_DEPTH {
            return Err("it nests too deep".to_owned());
        }
        self.depth += 1;
        let steps = self.steps(expression);
        self.depth -= 1;
        steps
    }

    fn steps(&mut self, expression: &'e IdedExpr) -> Result<u64, String> {
        Ok(match &expression.expr {
            Expr::Literal(_) | Expr::Unspecified => 1,
            Expr::Ident(name) => self.ident(name)?,
            Expr::Select(select) => match &select.operand.expr {
                Expr::Ident(name) if !self.scope.contains(&name.as_str()) && is_variable(name) => {
                    self.field(name, &select.field)?
                }
                _ => self.expression(&select.operand)?.saturating_add(1),
            },
            Expr::Call(call) => {
                if call.func_name == "matches" {
                    regex(call.args.last())?;
                }
                if call.func_name == operators::INDEX
                    && let [of, key] = call.args.as_slice()
                    && let (Expr::Ident(name), Expr::Literal(LiteralValue::String(field))) = (&of.expr, &key.expr)
                    && is_variable(name)
                    && !self.scope.contains(&name.as_str())
                {
                    return self.field(name, field.inner());
                }
                let parts = call.target.as_deref().into_iter().chain(&call.args);
                self.all(parts)?
            }
            Expr::List(list) => self.all(&list.elements)?,
            Expr::Map(map) => {
                let mut sum = 1_u64;
                for entry in &map.entries {
                    if let EntryExpr::MapEntry(entry) = &entry.expr {
                        sum = sum.saturating_add(self.expression(&entry.key)?);
                        sum = sum.saturating_add(self.expression(&entry.value)?);
                    }
                }
                sum
            }
            Expr::Struct(_) => return Err("it makes a message, which it cannot use".to_owned()),
            Expr::Comprehension(it) => {
                let range = self.expression(&it.iter_range)?;
                let length = match &it.iter_range.expr {
                    Expr::List(list) => list.elements.len() as u64,
                    Expr::Map(map) => map.entries.len() as u64,
                    _ => UNKNOWN_LENGTH,
                };
                let outer = self.scope.len();
                let init = self.expression(&it.accu_init)?;
                self.scope.extend([it.iter_var.as_str(), it.accu_var.as_str()]);
                self.scope.extend(it.iter_var2.as_deref());
                let body = self.expression(&it.loop_cond)?.saturating_add(self.expression(&it.loop_step)?);
                let result = self.expression(&it.result)?;
                self.scope.truncate(outer);
                range.saturating_add(init).saturating_add(length.saturating_mul(body)).saturating_add(result)
            }
        })
    }

    fn all(&mut self, parts: impl IntoIterator<Item = &'e IdedExpr>) -> Result<u64, String> {
        let mut sum = 1_u64;
        for part in parts {
            sum = sum.saturating_add(self.expression(part)?);
        }
        Ok(sum)
    }

    fn ident(&mut self, name: &str) -> Result<u64, String> {
        if self.scope.contains(&name) || TYPES.contains(&name) {
            return Ok(1);
        }
        match VARIABLES.iter().find(|(variable, _)| *variable == name) {
            Some((CLAIMS, _)) => {
                self.reads.insert((CLAIMS, ""));
                Ok(UNKNOWN_LENGTH)
            }
            // The whole of it, as in `"x" in request`.
            Some((variable, fields)) => {
                self.reads.extend(fields.iter().map(|field| (*variable, *field)));
                Ok(UNKNOWN_LENGTH)
            }
            None => {
                let names: Vec<&str> = VARIABLES.iter().map(|(name, _)| *name).collect();
                Err(format!("there is no variable `{name}`; there are {}", names.join(", ")))
            }
        }
    }

    fn field(&mut self, name: &str, field: &str) -> Result<u64, String> {
        let known = VARIABLES.iter().find(|(variable, _)| *variable == name && *variable != CLAIMS);
        let Some((variable, fields)) = known else { return self.ident(name) };
        let Some(known) = fields.iter().find(|known| **known == field) else {
            return Err(format!("`{name}` has no `{field}`; it has {}", fields.join(", ")));
        };
        self.reads.insert((variable, known));
        Ok(if *known == "headers" { UNKNOWN_LENGTH } else { 1 })
    }
}

/// Names of types, as `type(x) == string` has them.
const TYPES: [&str; 9] = ["bool", "bytes", "double", "int", "list", "map", "string", "uint", "null_type"];

fn is_variable(name: &str) -> bool {
    VARIABLES.iter().any(|(variable, _)| *variable == name)
}

fn regex(pattern: Option<&IdedExpr>) -> Result<(), String> {
    let Some(Expr::Literal(LiteralValue::String(pattern))) = pattern.map(|p| &p.expr) else {
        return Err("the pattern of `matches` must be written out".to_owned());
    };
    let built = regex::RegexBuilder::new(pattern.inner()).size_limit(REGEX_SIZE).build();
    built.map(drop).map_err(|error| {
        let text = error.to_string();
        let reason = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
        format!("`{}` is not a regular expression: {reason}", pattern.inner())
    })
}

/// What an expression yields that can yield neither true nor false.
fn never_bool(expression: &Expr) -> Option<&'static str> {
    match expression {
        Expr::Literal(LiteralValue::Boolean(_)) => None,
        Expr::Literal(LiteralValue::String(_)) => Some("a text"),
        Expr::Literal(LiteralValue::Null) => Some("null"),
        Expr::Literal(_) => Some("a number or bytes"),
        Expr::List(_) => Some("a list"),
        Expr::Map(_) | Expr::Struct(_) => Some("a map"),
        Expr::Ident(name) if is_variable(name) => Some("a map"),
        Expr::Select(select) if !select.test => match (&select.operand.expr, select.field.as_str()) {
            (Expr::Ident(name), "headers") if name == "request" => Some("a map"),
            (Expr::Ident(name), "port") if name == "destination" => Some("a number"),
            (Expr::Ident(name), _) if name == "source" || name == "request" => Some("a text"),
            _ => None,
        },
        Expr::Call(call) => match call.func_name.as_str() {
            operators::SUBSTRACT | operators::MULTIPLY | operators::DIVIDE | operators::MODULO | operators::NEGATE => {
                Some("a number")
            }
            operators::ADD => Some("a number, text or list"),
            "size" | "int" | "uint" | "double" => Some("a number"),
            "string" => Some("a text"),
            operators::CONDITIONAL => call.args.iter().skip(1).find_map(|branch| never_bool(&branch.expr)),
            _ => None,
        },
        _ => None,
    }
}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.source)
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)
    }
}

impl PartialEq for Expression {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl Serialize for Expression {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.source)
    }
}
