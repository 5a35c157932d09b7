/* rnnstream_kernel - plays back what NumPy does for some rows, without NumPy's calls.
 *
 * A tape is a list of operations on fixed buffers: elementwise loops, products, copies, rows of a table. The loops are those
 * that NumPy itself runs (the pointers in its ufuncs), the products those of the BLAS that NumPy itself calls: what is left
 * out is what each of these calls costs around them, some 0.5 us, and much more in a processor that has just done something
 * else. So the bits are NumPy's; whoever records a tape measures it all the same.
 *
 * Its buffers have one row or several, [R, n]; a batch of more is played R rows at a time, so that all of it stays in the
 * first-level cache. Where a batch ends, only the rows that there are take part; a tile of a product that begins with one of
 * them is multiplied whole, with whatever the other rows hold.
 *
 * Everything runs under the interpreter's lock, which makes a tape's buffers one thread's at a time. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define NPY_TARGET_VERSION NPY_2_0_API_VERSION
#include <numpy/arrayobject.h>
#include <numpy/ufuncobject.h>

#include <math.h>
#include <string.h>

#define VERSION "0.2.0" /* as in pyproject.toml */
enum { ROW_MAJOR = 101, AS_IS = 111, TRANSPOSED = 112 }; /* of CBLAS */
enum { MOST_ARGUMENTS = 4, MOST_ROWS = 1024, MOST_LOGITS = 1024 }; /* of more of these, NumPy's calls are the least of it */

/* CBLAS with 64-bit integers. One with 32 bits takes the lower half of each, where arguments are passed as here. */
typedef void (*sgemm_f)(int, int, int, npy_int64, npy_int64, npy_int64, float, const void *, npy_int64, const void *, npy_int64,
                        float, void *, npy_int64);
typedef void (*dgemm_f)(int, int, int, npy_int64, npy_int64, npy_int64, double, const void *, npy_int64, const void *, npy_int64,
                        double, void *, npy_int64);
typedef void (*sgemv_f)(int, int, npy_int64, npy_int64, float, const void *, npy_int64, const void *, npy_int64, float, void *,
                        npy_int64);
typedef void (*dgemv_f)(int, int, npy_int64, npy_int64, double, const void *, npy_int64, const void *, npy_int64, double, void *,
                        npy_int64);
static sgemm_f sgemm;
static dgemm_f dgemm;
static sgemv_f sgemv;
static dgemv_f dgemv;

typedef struct {
  PyUFuncGenericFunction run;
  void *data;
} loop;

typedef struct {
  enum { COPY, ROW, PRODUCT, LOOP } kind;
  char *at[MOST_ARGUMENTS];      /* COPY, ROW: to, from. PRODUCT: out, tile, w. LOOP: its arguments */
  npy_intp step[MOST_ARGUMENTS]; /* LOOP: bytes to the next number of each; 0 for one number for all */
  npy_intp next[MOST_ARGUMENTS]; /* LOOP, COPY, ROW: bytes to the next row; 0 for one row for all */
  npy_intp rows, n, k;           /* LOOP: numbers of a row. COPY, ROW: n bytes of one; ROW: of k rows. PRODUCT: [rows, k] [k, n] */
  npy_intp first, out_stride;    /* PRODUCT: the tile's first row among those of the tape; numbers to the next row of out */
  int whole;                     /* LOOP: rows follow each other without gaps, so that many are one long one */
  loop loop;
} operation;

/* An array of up to two axes as rows of numbers that lie side by side. */
typedef struct {
  char *at;
  npy_intp rows, n, next; /* bytes to the next row; 0 if there is one alone */
} lines;

typedef struct {
  PyObject_HEAD
  PyObject *kept; /* list: the arrays that the operations point into */
  PyObject *state, *x, *outputs; /* outputs: a tuple of one or two */
  lines state_at, x_at, output_at[2]; /* what they were when they were given */
  npy_intp rows, *ids; /* of the buffers; an id for each, if x is one */
  operation *operations;
  Py_ssize_t count;
  int takes_ids, type; /* NPY_FLOAT or NPY_DOUBLE */
} tape;

/* An array of the tape's dtype, in the machine's own form; `whole`: without holes; `to`: that is written to. */
static int is_ours(tape *self, PyObject *array, int whole, int to) {
  int flags = NPY_ARRAY_ALIGNED | (whole ? NPY_ARRAY_C_CONTIGUOUS : 0) | (to ? NPY_ARRAY_WRITEABLE : 0);
  if (PyArray_Check(array) && PyArray_TYPE((PyArrayObject *)array) == self->type && PyArray_ISNOTSWAPPED((PyArrayObject *)array) &&
      PyArray_CHKFLAGS((PyArrayObject *)array, flags))
    return 1;
  PyErr_SetString(PyExc_TypeError, "A tape takes arrays of its own dtype, without holes, and writeable where it writes.");
  return 0;
}

static operation *add(tape *self, int kind) {
  operation *grown = PyMem_Realloc(self->operations, (self->count + 1) * sizeof *grown);
  if (!grown) return (operation *)PyErr_NoMemory();
  self->operations = grown;
  operation *made = memset(grown + self->count, 0, sizeof *made);
  made->kind = kind;
  return made; /* counted by `added`, once it is complete */
}

static PyObject *added(tape *self, PyObject *arrays) {
  if (PyList_Append(self->kept, arrays)) return NULL;
  self->count++;
  Py_RETURN_NONE;
}

static int as_lines(tape *self, PyObject *array, int to, lines *found) {
  if (!is_ours(self, array, 0, to)) return 0;
  PyArrayObject *own = (PyArrayObject *)array;
  int axes = PyArray_NDIM(own), last = axes - 1;
  npy_intp size = PyArray_ITEMSIZE(own), n = axes ? PyArray_DIM(own, last) : 1, rows = axes == 2 ? PyArray_DIM(own, 0) : 1;
  npy_intp next = rows > 1 ? PyArray_STRIDE(own, 0) : 0;
  if (axes > 2 || (n > 1 && rows && PyArray_STRIDE(own, last) != size)) return PyErr_Format(PyExc_TypeError, "Rows have no holes."), 0;
  if (rows > 1 && (next < n * size || next % size)) return PyErr_Format(PyExc_ValueError, "The rows overlap."), 0;
  *found = (lines){PyArray_BYTES(own), rows, n, next};
  return 1;
}

/* The same, of a buffer or an argument that is put on the tape. */
static int as_own_lines(tape *self, PyObject *array, int to, lines *found) {
  if (!as_lines(self, array, to, found)) return 0;
  if (found->rows == 1 || found->rows == self->rows) return 1;
  return PyErr_Format(PyExc_ValueError, "The tape has %zd rows.", self->rows), 0;
}

static char *data(PyObject *array) { return PyArray_BYTES((PyArrayObject *)array); }
static npy_intp dim(PyObject *array, int axis) { return PyArray_DIM((PyArrayObject *)array, axis); }
static int dims(PyObject *array) { return PyArray_NDIM((PyArrayObject *)array); }

PyDoc_STRVAR(copy_doc, "copy(to, from): the numbers of each row.");
static PyObject *tape_copy(tape *self, PyObject *args) {
  PyObject *to, *from;
  lines into, of;
  if (!PyArg_ParseTuple(args, "OO", &to, &from) || !as_own_lines(self, to, 1, &into) || !as_own_lines(self, from, 0, &of)) return NULL;
  if (into.n != of.n || into.rows != of.rows) return PyErr_Format(PyExc_ValueError, "copy: the sizes differ.");
  operation *made = add(self, COPY);
  if (!made) return NULL;
  made->at[0] = into.at, made->at[1] = of.at, made->next[0] = into.next, made->next[1] = of.next;
  made->rows = into.rows, made->n = into.n * PyArray_ITEMSIZE((PyArrayObject *)to);
  return added(self, args);
}

PyDoc_STRVAR(row_doc, "row(to, table): for each row the one [n] of a table [k, n] that its x, an id, is the number of.");
static PyObject *tape_row(tape *self, PyObject *args) {
  PyObject *to, *table;
  lines into;
  if (!PyArg_ParseTuple(args, "OO", &to, &table) || !as_own_lines(self, to, 1, &into) || !is_ours(self, table, 1, 0)) return NULL;
  if (into.rows != self->rows || dims(table) != 2 || into.n != dim(table, 1))
    return PyErr_Format(PyExc_ValueError, "row: the shapes do not go together.");
  operation *made = add(self, ROW);
  if (!made) return NULL;
  made->at[0] = into.at, made->at[1] = data(table), made->next[0] = into.next;
  made->rows = into.rows, made->n = into.n * PyArray_ITEMSIZE((PyArrayObject *)to), made->k = dim(table, 0);
  self->takes_ids = 1;
  return added(self, args);
}

PyDoc_STRVAR(product_doc, "product(out, tile, w, first): out [r, n] = tile [r, k] times w [k, n], as NumPy asks its BLAS for it, for\n"
                          "the rows of the tape from `first` on.");
static PyObject *tape_product(tape *self, PyObject *args) {
  PyObject *out, *tile, *w;
  Py_ssize_t first;
  if (!PyArg_ParseTuple(args, "OOOn", &out, &tile, &w, &first) || !is_ours(self, out, 0, 1) || !is_ours(self, tile, 1, 0) ||
      !is_ours(self, w, 1, 0))
    return NULL;
  if (!(self->type == NPY_FLOAT ? (void *)sgemm : (void *)dgemm)) return PyErr_Format(PyExc_RuntimeError, "There is no BLAS.");
  npy_intp size = PyArray_ITEMSIZE((PyArrayObject *)out);
  if (dims(out) == 2 && (PyArray_STRIDE((PyArrayObject *)out, 0) < dim(out, 1) * size || PyArray_STRIDE((PyArrayObject *)out, 0) % size))
    return PyErr_Format(PyExc_ValueError, "product: the rows of the result overlap.");
  if (dims(out) != 2 || dims(tile) != 2 || dims(w) != 2 || dim(tile, 0) != dim(out, 0) || dim(tile, 1) != dim(w, 0) ||
      dim(w, 1) != dim(out, 1) || PyArray_STRIDE((PyArrayObject *)out, 1) != size)
    return PyErr_Format(PyExc_ValueError, "product: the shapes do not go together.");
  if (dim(w, 0) < 2 || dim(w, 1) < 2) return PyErr_Format(PyExc_ValueError, "product: w is a vector.");
  operation *made = add(self, PRODUCT);
  if (!made) return NULL;
  made->at[0] = data(out), made->at[1] = data(tile), made->at[2] = data(w);
  made->rows = dim(out, 0), made->n = dim(out, 1), made->k = dim(w, 0), made->first = first;
  made->out_stride = PyArray_STRIDE((PyArrayObject *)out, 0) / size;
  return added(self, args);
}

static int find(PyObject *ufunc, int type, Py_ssize_t arguments, loop *found) {
  PyUFuncObject *own = (PyUFuncObject *)ufunc;
  if (Py_TYPE(ufunc) != &PyUFunc_Type || own->nargs != arguments || own->nout != 1 || own->core_enabled || arguments > MOST_ARGUMENTS) {
    PyErr_SetString(PyExc_TypeError, "loop: not an elementwise function with one result.");
    return 0;
  }
  for (int place = 0; place < own->ntypes; place++) {
    int same = 1;
    for (int k = 0; k < own->nargs; k++) same &= own->types[place * own->nargs + k] == type;
    if (same && own->functions[place]) {
      *found = (loop){own->functions[place], own->data ? (void *)own->data[place] : NULL};
      return 1;
    }
  }
  PyErr_Format(PyExc_TypeError, "loop: %s has no loop for this dtype.", own->name);
  return 0;
}

PyDoc_STRVAR(loop_doc, "loop(ufunc, *arrays): the last one is the result. Arguments may have one row for all, or one number.");
static PyObject *tape_loop(tape *self, PyObject *args) {
  Py_ssize_t count = PyTuple_GET_SIZE(args) - 1;
  loop found;
  if (count < 2) return PyErr_Format(PyExc_TypeError, "loop: a ufunc, its arguments and the result.");
  if (!find(PyTuple_GET_ITEM(args, 0), self->type, count, &found)) return NULL;
  lines of[MOST_ARGUMENTS], *result = of + count - 1;
  for (Py_ssize_t k = 0; k < count; k++)
    if (!as_own_lines(self, PyTuple_GET_ITEM(args, k + 1), k == count - 1, of + k)) return NULL;
  for (Py_ssize_t k = 0; k < count; k++)
    if ((of[k].n != result->n && of[k].n != 1) || (of[k].rows != result->rows && of[k].rows != 1))
      return PyErr_Format(PyExc_ValueError, "loop: the shapes do not go together.");
  operation *made = add(self, LOOP);
  if (!made) return NULL;
  npy_intp size = PyArray_ITEMSIZE((PyArrayObject *)PyTuple_GET_ITEM(args, count));
  made->rows = result->rows, made->n = result->n, made->loop = found, made->whole = 1;
  for (Py_ssize_t k = 0; k < count; k++) {
    made->at[k] = of[k].at, made->next[k] = of[k].next, made->step[k] = of[k].n == result->n ? size : 0;
    made->whole &= result->rows == 1 || made->next[k] == result->n * made->step[k];
  }
  return added(self, args);
}

/* Runs the tape for the first of its rows, so many. */
static int run(tape *self, npy_intp rows) {
  for (operation *o = self->operations, *end = o + self->count; o < end; o++) {
    npy_intp mine = o->rows < rows ? o->rows : rows;
    switch (o->kind) {
      case COPY:
        for (npy_intp r = 0; r < mine; r++) memmove(o->at[0] + r * o->next[0], o->at[1] + r * o->next[1], o->n);
        break;
      case ROW:
        for (npy_intp r = 0; r < mine; r++) {
          npy_intp id = self->ids[r];
          if (id < 0 || id >= o->k) return PyErr_Format(PyExc_IndexError, "The id %zd is not below %zd.", id, o->k), -1;
          memmove(o->at[0] + r * o->next[0], o->at[1] + id * o->n, o->n);
        }
        break;
      case PRODUCT:
        if (o->first >= rows) break;
        if (o->rows == 1 && self->type == NPY_FLOAT) /* as NumPy does */
          sgemv(ROW_MAJOR, TRANSPOSED, o->k, o->n, 1, o->at[2], o->n, o->at[1], 1, 0, o->at[0], 1);
        else if (o->rows == 1)
          dgemv(ROW_MAJOR, TRANSPOSED, o->k, o->n, 1, o->at[2], o->n, o->at[1], 1, 0, o->at[0], 1);
        else if (self->type == NPY_FLOAT)
          sgemm(ROW_MAJOR, AS_IS, AS_IS, o->rows, o->n, o->k, 1, o->at[1], o->k, o->at[2], o->n, 0, o->at[0], o->out_stride);
        else
          dgemm(ROW_MAJOR, AS_IS, AS_IS, o->rows, o->n, o->k, 1, o->at[1], o->k, o->at[2], o->n, 0, o->at[0], o->out_stride);
        break;
      case LOOP:
        if (o->whole) {
          npy_intp n = o->n * mine;
          o->loop.run(o->at, &n, o->step, o->loop.data);
          break;
        }
        char *at[MOST_ARGUMENTS];
        memcpy(at, o->at, sizeof at);
        for (npy_intp r = 0; r < mine; r++) {
          o->loop.run(at, &o->n, o->step, o->loop.data);
          for (int k = 0; k < MOST_ARGUMENTS; k++) at[k] += o->next[k];
        }
    }
  }
  return 0;
}

static loop exp_of[2], sum_of[2]; /* float32, float64 */

static PyArray_ArgFunc *largest_of[2]; /* `argmax`: the first largest number, NaN being larger than all */

#define LIKELY(T, kind)                                                                      \
  static double likely_##T(const T *logits, T *e, npy_intp n, npy_intp *y) {                 \
    largest_of[kind]((void *)logits, n, y, NULL);                                            \
    T largest = logits[*y], sum = 0;                                                         \
    for (npy_intp i = 0; i < n; i++) e[i] = logits[i] - largest;                             \
    char *both[] = {(char *)e, (char *)e}, *three[] = {(char *)&sum, (char *)e, (char *)&sum}; \
    npy_intp next[] = {sizeof(T), sizeof(T)}, reduced[] = {0, sizeof(T), 0};                 \
    exp_of[kind].run(both, &n, next, exp_of[kind].data);                                     \
    sum_of[kind].run(three, &n, reduced, sum_of[kind].data);                                 \
    largest_of[kind](e, n, y, NULL);                                                         \
    return (T)1 / sum;                                                                       \
  }
LIKELY(float, 0)
LIKELY(double, 1)

/* The most likely id of a row of logits, lowest id first among equals; its probability comes to `p`. */
static npy_intp likely(tape *self, const char *logits, npy_intp n, double *p) {
  double e[MOST_LOGITS];
  npy_intp y;
  *p = self->type == NPY_FLOAT ? likely_float((const float *)logits, (float *)e, n, &y) : likely_double((const double *)logits, e, n, &y);
  return y;
}

static int fill(tape *self, const lines *buffer, PyObject *given) {
  if (!is_ours(self, given, 1, 0)) return -1;
  if (PyArray_SIZE((PyArrayObject *)given) != buffer->n) return PyErr_Format(PyExc_ValueError, "play: of another size."), -1;
  memmove(buffer->at, data(given), PyArray_NBYTES((PyArrayObject *)given));
  return 0;
}

/* Runs the tape on what `play` and `predict` are given. */
static int feed(tape *self, PyObject *const *args, Py_ssize_t count) {
  npy_intp id = -1;
  /* First of all what may run code of others: from there on nothing comes in between. */
  if (count == 2 && self->x == Py_None && (id = PyNumber_AsSsize_t(args[1], PyExc_IndexError)) == -1 && PyErr_Occurred()) return -1;
  if (!self->outputs || count < 1 || count > 2 || (self->x != Py_None && count != 2))
    return PyErr_Format(PyExc_TypeError, "play: a state, and x."), -1;
  if (fill(self, &self->state_at, args[0])) return -1;
  if (self->x != Py_None && fill(self, &self->x_at, args[1])) return -1;
  self->ids[0] = id;
  return run(self, 1);
}

static PyObject *copy_of(tape *self, int which) {
  PyObject *made = PyArray_SimpleNew(1, &self->output_at[which].n, self->type);
  if (made) memcpy(data(made), self->output_at[which].at, PyArray_NBYTES((PyArrayObject *)made));
  return made;
}

/* Whether two outputs are one buffer, as the state of a vanilla network is what it gives out. */
static int are_one(const lines *outputs) { return outputs[0].at == outputs[1].at && outputs[0].n == outputs[1].n; }

PyDoc_STRVAR(play_doc, "play(state, x=None): what comes out for this state [S] and token, an id or [K]: new arrays, or the only one.");
static PyObject *tape_play(tape *self, PyObject *const *args, Py_ssize_t count) {
  if (feed(self, args, count)) return NULL;
  PyObject *first = copy_of(self, 0);
  if (!first || PyTuple_GET_SIZE(self->outputs) == 1) return first;
  int same = are_one(self->output_at);
  PyObject *second = same ? Py_NewRef(first) : copy_of(self, 1), *both = second ? PyTuple_Pack(2, first, second) : NULL;
  Py_DECREF(first), Py_XDECREF(second);
  return both;
}

PyDoc_STRVAR(predict_doc, "predict(state, x): of a tape whose outputs are the new state and logits [V]: the new state [S], the id of the\n"
                          "most likely token, lowest id first among equals, and its probability. None if the state is not finite.");
static PyObject *tape_predict(tape *self, PyObject *const *args, Py_ssize_t count) {
  if (count != 2 || !self->outputs || PyTuple_GET_SIZE(self->outputs) != 2)
    return PyErr_Format(PyExc_TypeError, "predict: a state and x, for a state and logits.");
  if (!self->output_at[1].n || self->output_at[1].n > MOST_LOGITS)
    return PyErr_Format(PyExc_ValueError, "predict: there are at most %d logits.", MOST_LOGITS);
  if (feed(self, args, count)) return NULL;
  if (PyTuple_GET_SIZE(self->outputs) != 2 || self->output_at[1].n > MOST_LOGITS) /* x has given it other ends */
    return PyErr_Format(PyExc_TypeError, "predict: a state and x, for a state and logits.");
  const char *state = self->output_at[0].at;
  npy_intp s = self->output_at[0].n;
  int finite = 1;
  double p;
  if (self->type == NPY_FLOAT)
    for (npy_intp i = 0; i < s; i++) finite &= isfinite(((float *)state)[i]) != 0;
  else
    for (npy_intp i = 0; i < s; i++) finite &= isfinite(((double *)state)[i]) != 0;
  if (!finite) Py_RETURN_NONE;
  npy_intp y = likely(self, self->output_at[1].at, self->output_at[1].n, &p);
  PyObject *made = copy_of(self, 0), *id = PyLong_FromSsize_t(y), *probability = PyFloat_FromDouble(p);
  PyObject *all = made && id && probability ? PyTuple_Pack(3, made, id, probability) : NULL;
  Py_XDECREF(made), Py_XDECREF(id), Py_XDECREF(probability);
  return all;
}

/* Calls `then` for each part of a batch that the tape has been run for: its first row, and how many. */
static int feed_many(tape *self, PyObject *states, PyObject *xs, void (*then)(tape *, npy_intp, npy_intp, void *), void *more) {
  lines batch, tokens = {0};
  if (!self->outputs || (xs != Py_None) != (self->x != Py_None || self->takes_ids))
    return PyErr_Format(PyExc_TypeError, "play_many: states, and xs if the tape takes some."), -1;
  if (!as_lines(self, states, 0, &batch)) return -1;
  if (self->takes_ids) {
    PyArrayObject *ids = (PyArrayObject *)xs;
    if (!PyArray_Check(xs) || PyArray_TYPE(ids) != NPY_INTP || !PyArray_ISCARRAY_RO(ids) || dims(xs) != 1)
      return PyErr_Format(PyExc_TypeError, "play_many: ids are an array [B] of intp."), -1;
    tokens = (lines){data(xs), dim(xs, 0), 0, sizeof(npy_intp)};
  } else if (xs != Py_None && !as_lines(self, xs, 0, &tokens)) {
    return -1;
  }
  if (batch.n != self->state_at.n || tokens.n != self->x_at.n || (xs != Py_None && (tokens.rows != batch.rows || (dims(xs) == 1) != self->takes_ids)))
    return PyErr_Format(PyExc_ValueError, "play_many: of another size."), -1;
  npy_intp size = PyArray_ITEMSIZE((PyArrayObject *)states), row = batch.n * size, x_row = tokens.n * size;
  for (npy_intp start = 0; start < batch.rows; start += self->rows) {
    npy_intp rows = batch.rows - start < self->rows ? batch.rows - start : self->rows;
    for (npy_intp r = 0; r < rows; r++) {
      memcpy(self->state_at.at + r * self->state_at.next, batch.at + (start + r) * batch.next, row);
      if (self->takes_ids)
        memcpy(self->ids + r, tokens.at + (start + r) * tokens.next, sizeof(npy_intp));
      else if (xs != Py_None)
        memcpy(self->x_at.at + r * self->x_at.next, tokens.at + (start + r) * tokens.next, x_row);
    }
    if (run(self, rows)) return -1;
    then(self, start, rows, more);
  }
  return 0;
}

static void keep_outputs(tape *self, npy_intp start, npy_intp rows, void *made) {
  for (int k = 0; k < 2; k++) {
    PyObject *to = ((PyObject **)made)[k];
    const lines *from = self->output_at + k;
    npy_intp row = to ? from->n * PyArray_ITEMSIZE((PyArrayObject *)to) : 0;
    for (npy_intp r = 0; to && r < rows; r++) memcpy(data(to) + (start + r) * row, from->at + r * from->next, row);
  }
}

PyDoc_STRVAR(play_many_doc, "play_many(states, xs=None): `play` for a batch: states [B, S], and ids [B] or [B, K].");
static PyObject *tape_play_many(tape *self, PyObject *args) {
  PyObject *states, *xs = Py_None, *made[2] = {NULL, NULL};
  if (!PyArg_ParseTuple(args, "O|O", &states, &xs)) return NULL;
  if (!self->outputs || !PyArray_Check(states) || dims(states) != 2) return PyErr_Format(PyExc_TypeError, "play_many: states [B, S].");
  Py_ssize_t outputs = PyTuple_GET_SIZE(self->outputs);
  int same = outputs == 2 && are_one(self->output_at);
  for (Py_ssize_t k = 0; k < outputs - same; k++) {
    npy_intp shape[] = {dim(states, 0), self->output_at[k].n};
    if (!(made[k] = PyArray_SimpleNew(2, shape, self->type))) goto failed;
  }
  if (feed_many(self, states, xs, keep_outputs, made)) goto failed;
  if (outputs == 1) return made[0];
  if (same) made[1] = Py_NewRef(made[0]);
  return Py_BuildValue("NN", made[0], made[1]);
failed:
  Py_XDECREF(made[0]), Py_XDECREF(made[1]);
  return NULL;
}

static void keep_likely(tape *self, npy_intp start, npy_intp rows, void *made) {
  PyObject **to = made;
  for (npy_intp r = 0; r < rows; r++) {
    double p;
    ((npy_intp *)data(to[0]))[start + r] = likely(self, self->output_at->at + r * self->output_at->next, self->output_at->n, &p);
    if (self->type == NPY_FLOAT)
      ((float *)data(to[1]))[start + r] = (float)p;
    else
      ((double *)data(to[1]))[start + r] = p;
  }
}

PyDoc_STRVAR(likely_doc, "likely(features): of a tape that makes logits of features [B, F]: the id of the most likely token of each row,\n"
                         "lowest id first among equals, and its probability: [B], [B].");
static PyObject *tape_likely(tape *self, PyObject *features) {
  if (!self->outputs || PyTuple_GET_SIZE(self->outputs) != 1 || !self->output_at->n || self->output_at->n > MOST_LOGITS)
    return PyErr_Format(PyExc_TypeError, "likely: the tape gives 1 to %d logits.", MOST_LOGITS);
  if (!PyArray_Check(features) || dims(features) != 2) return PyErr_Format(PyExc_TypeError, "likely: features [B, F].");
  npy_intp count = dim(features, 0);
  PyObject *made[] = {PyArray_SimpleNew(1, &count, NPY_INTP), PyArray_SimpleNew(1, &count, self->type)};
  if (made[0] && made[1] && !feed_many(self, features, Py_None, keep_likely, made)) return Py_BuildValue("NN", made[0], made[1]);
  Py_XDECREF(made[0]), Py_XDECREF(made[1]);
  return NULL;
}

PyDoc_STRVAR(ends_doc, "ends(state, x, *outputs): the buffers that are filled, x None for ids, and those, one or two, that come out.");
static PyObject *tape_ends(tape *self, PyObject *args) {
  Py_ssize_t count = PyTuple_GET_SIZE(args);
  lines of[4] = {{0}};
  if (count < 3 || count > 4) return PyErr_Format(PyExc_TypeError, "ends: a state, x, and one or two outputs.");
  for (Py_ssize_t k = 0; k < count; k++) {
    PyObject *array = PyTuple_GET_ITEM(args, k);
    if (k == 1 && array == Py_None) continue;
    if (!as_own_lines(self, array, 1, of + k)) return NULL;
    if (of[k].rows != self->rows) return PyErr_Format(PyExc_ValueError, "ends: a row of numbers for each of the tape's.");
  }
  self->state_at = of[0], self->x_at = of[1];
  for (Py_ssize_t k = 2; k < count; k++) self->output_at[k - 2] = of[k];
  Py_XSETREF(self->state, Py_NewRef(PyTuple_GET_ITEM(args, 0)));
  Py_XSETREF(self->x, Py_NewRef(PyTuple_GET_ITEM(args, 1)));
  Py_XSETREF(self->outputs, PyTuple_GetSlice(args, 2, count));
  return self->outputs ? Py_NewRef(Py_None) : NULL;
}

static PyObject *tape_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
  static char *names[] = {"dtype", "rows", NULL};
  PyArray_Descr *dtype = NULL;
  Py_ssize_t rows = 1;
  if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&|n", names, PyArray_DescrConverter, &dtype, &rows)) return NULL;
  int kind = PyArray_ISNBO(dtype->byteorder) ? dtype->type_num : NPY_NOTYPE;
  Py_DECREF(dtype);
  if (kind != NPY_FLOAT && kind != NPY_DOUBLE) return PyErr_Format(PyExc_TypeError, "A tape is for float32 or float64.");
  if (rows < 1 || rows > MOST_ROWS) return PyErr_Format(PyExc_ValueError, "A tape has 1 to %d rows.", MOST_ROWS);
  tape *self = (tape *)type->tp_alloc(type, 0);
  if (!self) return NULL;
  self->type = kind, self->rows = rows, self->ids = PyMem_Calloc(rows, sizeof *self->ids);
  if (!self->ids) PyErr_NoMemory();
  if (!self->ids || !(self->kept = PyList_New(0))) Py_CLEAR(self);
  return (PyObject *)self;
}

static void tape_free(tape *self) {
  PyMem_Free(self->operations), PyMem_Free(self->ids);
  Py_XDECREF(self->kept), Py_XDECREF(self->state), Py_XDECREF(self->x), Py_XDECREF(self->outputs);
  Py_TYPE(self)->tp_free((PyObject *)self);
}

static Py_ssize_t tape_length(tape *self) { return self->count; }

static PyMethodDef tape_methods[] = {
    {"copy", (PyCFunction)tape_copy, METH_VARARGS, copy_doc},
    {"row", (PyCFunction)tape_row, METH_VARARGS, row_doc},
    {"product", (PyCFunction)tape_product, METH_VARARGS, product_doc},
    {"loop", (PyCFunction)tape_loop, METH_VARARGS, loop_doc},
    {"ends", (PyCFunction)tape_ends, METH_VARARGS, ends_doc},
    {"play", (PyCFunction)(void (*)(void))tape_play, METH_FASTCALL, play_doc},
    {"predict", (PyCFunction)(void (*)(void))tape_predict, METH_FASTCALL, predict_doc},
    {"play_many", (PyCFunction)tape_play_many, METH_VARARGS, play_many_doc},
    {"likely", (PyCFunction)tape_likely, METH_O, likely_doc},
    {NULL}};
static PySequenceMethods tape_sequence = {.sq_length = (lenfunc)tape_length};
static PyTypeObject tape_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "rnnstream_kernel.Tape",
    .tp_doc = "Tape(dtype, rows=1): operations on buffers of so many rows, float32 or float64, in the order in which they came.",
    .tp_basicsize = sizeof(tape),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = tape_new,
    .tp_dealloc = (destructor)tape_free,
    .tp_as_sequence = &tape_sequence,
    .tp_methods = tape_methods,
};

PyDoc_STRVAR(use_doc, "use_blas(sgemm, dgemm, sgemv, dgemv): addresses of the CBLAS functions that NumPy calls.");
static PyObject *use_blas(PyObject *module, PyObject *args) {
  Py_ssize_t at[4];
  if (!PyArg_ParseTuple(args, "nnnn", at, at + 1, at + 2, at + 3)) return NULL;
  sgemm = (sgemm_f)at[0], dgemm = (dgemm_f)at[1], sgemv = (sgemv_f)at[2], dgemv = (dgemv_f)at[3];
  Py_RETURN_NONE;
}

static PyMethodDef methods[] = {{"use_blas", use_blas, METH_VARARGS, use_doc}, {NULL}};
static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "rnnstream_kernel", "Some rows without NumPy's calls.", -1, methods};

PyMODINIT_FUNC PyInit_rnnstream_kernel(void) {
  import_array();
  import_umath();
  largest_of[0] = PyDataType_GetArrFuncs(PyArray_DescrFromType(NPY_FLOAT))->argmax; /* descriptors that live for ever */
  largest_of[1] = PyDataType_GetArrFuncs(PyArray_DescrFromType(NPY_DOUBLE))->argmax;
  PyObject *numpy = PyImport_ImportModule("numpy"), *module = NULL;
  PyObject *exp = numpy ? PyObject_GetAttrString(numpy, "exp") : NULL, *plus = numpy ? PyObject_GetAttrString(numpy, "add") : NULL;
  if (exp && plus && find(exp, NPY_FLOAT, 2, exp_of) && find(exp, NPY_DOUBLE, 2, exp_of + 1) && find(plus, NPY_FLOAT, 3, sum_of) &&
      find(plus, NPY_DOUBLE, 3, sum_of + 1) && !PyType_Ready(&tape_type) && (module = PyModule_Create(&definition)) &&
      (PyModule_AddObjectRef(module, "Tape", (PyObject *)&tape_type) || PyModule_AddStringConstant(module, "__version__", VERSION) ||
       PyModule_AddIntMacro(module, MOST_LOGITS)))
    Py_CLEAR(module);
  Py_XDECREF(exp), Py_XDECREF(plus), Py_XDECREF(numpy);
  return module;
}
